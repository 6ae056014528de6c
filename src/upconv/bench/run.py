"""A run over many layers, whose measurements survive an interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import import_module
from itertools import product

from upconv.bench import contest, machine, rivals
from upconv.bench.report import Report
from upconv.bench.suite import Layer


def run(
    layers: Sequence[Layer],
    names: Mapping[str, rivals.Rival],
    threads: int,
    seconds: float,
    *,
    passes: int = 1,
    cold: bool = True,
    command: str = "upconv bench",
    left_out: Mapping[str, str] | None = None,
    before: Callable[[Layer], None] = lambda layer: None,
    after: Callable[[contest.Outcome, Report], None] = lambda outcome, report: None,
) -> Report:
    """Time the layers against the rivals that are installed; Ctrl-C ends it early and keeps what was measured.

    Several `passes` go over all layers in turn, so that a layer's measurements lie far apart, and give the median of each
    contender's medians. `before` and `after` are called round each layer, with the report as it stands.
    """
    missing = {name: rival.missing for name, rival in names.items() if rival.missing}
    there = {name: rival for name, rival in names.items() if name not in missing}
    played: list[list[contest.Outcome]] = []
    machines: list[machine.Machine] = []

    def report(waiting: int) -> Report:
        date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        out = dict(left_out or {})
        outcomes = [contest.settled(several) for several in played]
        least = min(map(len, played), default=1)
        return Report(command, date, seconds, rivals.versions(), machines, outcomes, out, missing, waiting, least)

    for need in dict.fromkeys(need for rival in there.values() for need in rival.needs):
        import_module(need)  # so that no first call is charged with it
    with contest.using(threads):
        gauge = machine.Gauge(threads)
        machines.append(gauge.best())
        try:
            for number, (i, layer) in product(range(passes), enumerate(layers)):
                before(layer)
                outcome = contest.play(layer, there, threads, seconds, cold and number == 0, gauge)
                if number == 0:
                    played.append([])
                played[i].append(outcome)
                machines.append(gauge.best(tries=3))
                after(outcome, report(len(layers) - len(played)))
        except KeyboardInterrupt:
            return report(len(layers) - len(played))
    return report(0)
