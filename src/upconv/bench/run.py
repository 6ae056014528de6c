"""A run over many layers, whose measurements survive an interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from importlib import import_module

from upconv.bench import contest, machine, rivals
from upconv.bench.report import Report
from upconv.bench.suite import Layer


def run(
    layers: Sequence[Layer],
    names: Mapping[str, rivals.Rival],
    threads: int,
    seconds: float,
    *,
    cold: bool = True,
    command: str = "upconv bench",
    left_out: Mapping[str, str] | None = None,
    before: Callable[[Layer], None] = lambda layer: None,
    after: Callable[[contest.Outcome, Report], None] = lambda outcome, report: None,
) -> Report:
    """Time the layers against the rivals that are installed; Ctrl-C ends it early and keeps what was measured.

    `before` and `after` are called round each layer, with the report as it stands.
    """
    missing = {name: rival.missing for name, rival in names.items() if rival.missing}
    there = {name: rival for name, rival in names.items() if name not in missing}
    outcomes: list[contest.Outcome] = []
    machines: list[machine.Machine] = []

    def report(waiting: int) -> Report:
        date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        out = dict(left_out or {})
        return Report(command, date, seconds, rivals.versions(), machines, outcomes, out, missing, waiting)

    for need in dict.fromkeys(need for rival in there.values() for need in rival.needs):
        import_module(need)  # so that no first call is charged with it
    with contest.using(threads):
        machines.append(machine.measure(threads))
        try:
            for done, layer in enumerate(layers):
                before(layer)
                outcomes.append(contest.play(layer, there, threads, seconds, cold))
                machines.append(machine.measure(threads, tries=3))
                after(outcomes[-1], report(len(layers) - done - 1))
        except KeyboardInterrupt:
            return report(len(layers) - len(outcomes))
    return report(0)
