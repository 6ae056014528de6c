"""What a run of the bench says: a summary, a table, JSON; files are written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

from upconv.bench.contest import LAST, OURS, Outcome
from upconv.bench.machine import Machine

BEGIN, END = "<!-- begin: written by upconv bench -->", "<!-- end: written by upconv bench -->"


@dataclass(frozen=True, slots=True)
class Report:
    """One run. `machines` are measurements spread over it; `left_out` and `missing` give reasons."""

    command: str
    date: str
    seconds: float
    versions: Mapping[str, str]
    machines: Sequence[Machine]
    outcomes: Sequence[Outcome]
    left_out: Mapping[str, str]
    missing: Mapping[str, str]
    waiting: int = 0
    """Layers that were not measured because the run was interrupted."""
    passes: int = 1
    """How often all of the layers were timed."""

    @property
    def machine(self) -> Machine:
        """The median of what was measured over the run, the best of a few tries each time."""
        return Machine.settled(self.machines)

    def fraction(self, outcome: Outcome, seconds: float | None = None) -> float:
        """The machine's direct-sum limit over our time (or another): above 1 is faster than a direct sum can be."""
        return _fraction(self.machine, outcome, seconds)

    @property
    def ours(self) -> list[str]:
        """Our layouts, the second where it was timed in some layer."""
        return [OURS, LAST] if any(LAST in o.times for o in self.outcomes) else [OURS]

    @property
    def rivals(self) -> list[str]:
        """Those that took part in some layer."""
        return list(dict.fromkeys(name for o in self.outcomes for name in o.times if name not in (OURS, LAST)))


def _fraction(machine: Machine, outcome: Outcome, seconds: float | None = None) -> float:
    problem = outcome.layer.problem
    return machine.limit(problem.flops, problem.bytes) / (outcome.ours if seconds is None else seconds)


def fraction_in_turn(outcome: Outcome) -> float | None:
    """The same limit at the rates of multiply-adds and copies that were timed as contenders, in turn with the layer's calls."""
    return None if outcome.machine is None else _fraction(outcome.machine, outcome)


def mean(values: Iterable[float]) -> float:
    """The geometric mean.

    >>> round(mean([1, 4]), 6)
    2.0
    """
    logs = [log(v) for v in values]
    return exp(sum(logs) / len(logs))


def _against(pairs: Sequence[tuple[str, float]]) -> dict[str, Any] | None:
    """Geometric mean, least, and how many are below 1.0 and 1.1, of (layer, ratio) pairs."""
    if not pairs:
        return None
    ratios = [ratio for _, ratio in pairs]
    name, least = min(pairs, key=lambda pair: pair[1])
    below = {f"below_{bar}": sum(r < bar for r in ratios) for bar in (1.0, 1.1)}
    return {"layers": len(pairs), "geometric_mean": mean(ratios), "least": least, "least_layer": name, **below}


def summary(report: Report) -> dict[str, Any]:
    """The figures that a run is judged by."""
    outcomes = report.outcomes
    named = [(o.layer.name, o.ratio, o.ratio_default) for o in outcomes]
    return {
        "fastest_rival": _against([(name, r) for name, r, _ in named if r is not None]),
        "fastest_rival_in_better_layout": _against(
            [(o.layer.name, o.ratio_better) for o in outcomes if o.ratio_better is not None and LAST in report.ours]
        ),
        "torch_default": _against([(name, r) for name, _, r in named if r is not None]),
        "limit": _against([(o.layer.name, report.fraction(o)) for o in outcomes]),
        "limit_in_turn": _against([(o.layer.name, f) for o in outcomes if (f := fraction_in_turn(o)) is not None]),
        "limit_of_fastest_rival": _against(
            [(o.layer.name, report.fraction(o, o.times[o.fastest].median)) for o in outcomes if o.fastest is not None]
        ),
        "fastest_rival_is": dict(Counter(o.fastest for o in outcomes if o.fastest is not None).most_common()),
        "largest_difference": max((o.difference for o in outcomes if o.difference is not None), default=None),
    }


def as_json(report: Report) -> dict[str, Any]:
    """All that was measured, in plain values; seconds are seconds."""
    machine = report.machine
    return {
        "format": "upconv bench 1",
        "command": report.command,
        "date": report.date,
        "complete": not report.waiting,
        "not_measured": report.waiting,
        "seconds_a_layer": report.seconds,
        "passes": report.passes,
        "versions": dict(report.versions),
        "machine": {
            "processor": machine.processor,
            "target": machine.target,
            "threads": machine.threads,
            "flops": machine.flops,
            "bytes": machine.bytes,
            "measured": [{"flops": m.flops, "bytes": m.bytes} for m in report.machines],
        },
        "summary": summary(report),
        "missing": dict(report.missing),
        "left_out": dict(report.left_out),
        "layers": [_layer(report, o) for o in report.outcomes],
    }


def _layer(report: Report, o: Outcome) -> dict[str, Any]:
    problem = o.layer.problem
    return {
        "name": o.layer.name,
        "layer": str(problem.spec),
        "input_shape": problem.input_shape,
        "output_shape": problem.output_shape,
        "flops": problem.flops,
        "bytes": problem.bytes,
        "kernel": o.kernel,
        "plan": o.note,
        "times": {name: {"median": t.median, "best": t.best, "count": t.count} for name, t in o.times.items()},
        "first": dict(o.first),
        "cold": None if o.cold is None else {"compiling": o.cold.compiling, "cached": o.cold.cached},
        "fastest_rival": o.fastest,
        "ratio": o.ratio,
        "ratio_in_better_layout": o.ratio_better,
        "ratio_torch_default": o.ratio_default,
        "fraction_of_limit": report.fraction(o),
        "fraction_of_limit_in_turn": fraction_in_turn(o),
        "in_turn": None if o.machine is None else {"flops": o.machine.flops, "bytes": o.machine.bytes},
        "difference": o.difference,
        "difference_from": o.judge,
        "refused": dict(o.refused),
    }


# -- Markdown --------------------------------------------------------------------------------------------------------------


def _say(found: Mapping[str, Any] | None, what: str) -> str:
    if found is None:
        return f"- {what}: nothing to compare with."
    return (
        f"- {what}: geometric mean **{found['geometric_mean']:.2f}x**, least {found['least']:.2f}x "
        f"({found['least_layer']}); {found['below_1.0']} of {found['layers']} layers below 1.0, {found['below_1.1']} below 1.1."
    )


def headline(report: Report) -> list[str]:
    """The summary in words, one Markdown list item a line."""
    found = summary(report)
    lines = [
        _say(found["fastest_rival"], "Against the fastest rival of each layer"),
        _say(found["torch_default"], "Against PyTorch's default (channels-first eager)"),
    ]
    better = found["fastest_rival_in_better_layout"]
    if better is not None:
        lines.insert(1, _say(better, "The same in the faster of upconv's two layouts, as the faster of PyTorch's counts"))
    limit, theirs = found["limit"], found["limit_of_fastest_rival"]
    if limit is not None:
        rest = f"; the fastest rival's {theirs['geometric_mean']:.2f}" if theirs else ""
        lines.append(f"- Of the machine's direct-sum limit: geometric mean **{limit['geometric_mean']:.2f}**{rest}.")
    turn = found["limit_in_turn"]
    if turn is not None:
        lines.append(f"- Of it at the rates measured in turn with each layer: geometric mean **{turn['geometric_mean']:.2f}**.")
    if found["fastest_rival_is"]:
        counts = ", ".join(f"{name} {n}" for name, n in found["fastest_rival_is"].items())
        lines.append(f"- Fastest rival, layers: {counts}.")
    if found["largest_difference"] is not None:
        lines.append(f"- Largest difference from PyTorch, relative to a layer's largest output: {found['largest_difference']:.1e}.")
    wise = sum("chosen by wisdom" in o.note for o in report.outcomes)
    if wise:
        lines.append(f"- {wise} of {len(report.outcomes)} plans were chosen by measuring before (`upconv tune`), not by estimates.")
    if report.waiting:
        lines.insert(0, f"- **Interrupted: {report.waiting} layers were not measured.**")
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """(headings, cells) of the table, one row a layer."""
    ours, rivals = report.ours, report.rivals
    times = (f"{name} ms" for name in (*ours, *rivals))
    titles = ["layer", "GFLOP", *times, "x fastest", "x torch", "of limit", "in turn", "kernel"]
    cells = []
    for o in report.outcomes:
        medians = [o.times[name].median * 1e3 if name in o.times else None for name in (*ours, *rivals)]
        cells.append(
            [
                o.layer.name,
                f"{o.layer.problem.flops / 1e9:.3g}",
                *(_number(t, ".4g") for t in medians),
                _number(o.ratio, ".2f"),
                _number(o.ratio_default, ".2f"),
                f"{report.fraction(o):.2f}",
                _number(fraction_in_turn(o), ".2f"),
                o.kernel,
            ]
        )
    return [*titles, "first call ms: compiling / not", "difference"], [
        [*row, _cold(o), _number(o.difference, ".0e")] for row, o in zip(cells, report.outcomes, strict=True)
    ]


def refusals(report: Report) -> list[str]:
    """Which rivals did not take part where, and why; layers with the same reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for o in report.outcomes:
        for rival, reason in o.refused.items():
            found.setdefault((rival, reason), []).append(o.layer.name)
    return [
        f"{rival}: {reason} ({', '.join(names) if len(names) <= 3 else f'{len(names)} layers'})"
        for (rival, reason), names in found.items()
    ]


def _cold(o: Outcome) -> str:
    return "-" if o.cold is None else f"{o.cold.compiling * 1e3:.0f} / {o.cold.cached * 1e3:.1f}"


def markdown(report: Report, plot: str | None = None) -> str:
    """The report as it stands in a README."""
    machine = report.machine
    parts = ["\n".join(headline(report)), _conditions(report, machine), "Again: `" + report.command + "`"]
    if plot:
        parts.append(f"![every layer's ratio to the fastest rival, and its fraction of the limit]({plot})")
    titles, cells = rows(report)
    table = ["| " + " | ".join(titles) + " |", "|---" + "|---:" * (len(titles) - 1) + "|"]
    parts.append("\n".join([*table, *("| " + " | ".join(row) + " |" for row in cells)]))
    refused = refusals(report)
    if refused:
        parts.append("Rivals that layers were timed without:\n\n" + "\n".join(f"- {line}" for line in refused))
    if report.left_out:
        names = "; ".join(f"{name} ({reason})" for name, reason in report.left_out.items())
        parts.append(f"Left out as too large ({len(report.left_out)}): {names}.")
    return "\n\n".join(parts) + "\n"


def _conditions(report: Report, machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    passes = f" Of {report.passes} passes over all layers each contender's median counts." if report.passes > 1 else ""
    missing = "".join(f" {name} is missing ({reason})." for name, reason in report.missing.items())
    return (
        f"{report.date}, {machine.processor} ({machine.target}), {machine.threads} threads, float32; {versions}.{missing} "
        f"Measured in the same process, {len(report.machines)} times over the run, the best of three tries: "
        f"{machine.flops / 1e9:.0f} GFLOP/s of multiply-adds, {machine.bytes / 1e9:.1f} GB/s copied (reads and writes counted)"
        f"{_in_turn(report)}. The limit is the larger of the direct sum's flops (borders not subtracted) at the one and of input, "
        f"output and weights moved once at the other; fractions above 1 are Winograd's. Times are medians of bursts, contenders "
        f"in turn, about {report.seconds:g} s a layer, weights packed.{passes} First calls are in a process of their own, that has "
        f"neither plan, code nor packed weight: with compilation, and with the code in the cache on disk."
    )


def _in_turn(report: Report) -> str:
    """What the machine did in turn with the layers, over all of them."""
    found = [o.machine for o in report.outcomes if o.machine is not None]
    if not found:
        return ""
    m = Machine.settled(found)
    return f"; as contenders, timed in turn with each layer, {m.flops / 1e9:.0f} and {m.bytes / 1e9:.1f} in the median"


# -- files -----------------------------------------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> None:
    """Beside its place, then renamed: nobody ever sees half of a file, and a failed write leaves the old one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def within(page: str | None, text: str) -> str:
    """The page with its generated part put in place of the one between the marks, or with one where it had none."""
    block = f"{BEGIN}\n\n{text}\n{END}\n"
    if page is None:
        return block
    head, mark, rest = page.partition(BEGIN)
    if not mark:
        return f"{page.rstrip()}\n\n{block}"
    return head + block + rest.partition(END)[2].lstrip("\n")


def save(report: Report, folder: Path, plot: tuple[str, bytes] | None = None) -> list[Path]:
    """Write README.md (what stands outside the marks is kept), report.json and the plot; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    readme, data = folder / "README.md", folder / "report.json"
    page = readme.read_text(encoding="utf-8") if readme.exists() else None
    found: dict[Path, bytes] = {folder / plot[0]: plot[1]} if plot else {}
    found[data] = (json.dumps(as_json(report), indent=1) + "\n").encode()
    found[readme] = within(page, markdown(report, plot[0] if plot else None)).encode()
    for path, content in found.items():
        write(path, content)
    return list(found)
