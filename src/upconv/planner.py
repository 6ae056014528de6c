"""Plans: which kernel runs a problem, how it is blocked, what it costs, and why the others were not taken.

A plan touches no array and compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

from upconv.codegen.target import Target
from upconv.kernels import (
    depthwise,
    depthwise_last,
    direct,
    direct_rows,
    indirect,
    indirect_first,
    overlap_add,
    overlap_add_last,
    overlap_add_rows,
    strassen,
    strassen_last,
    strassen_twice,
    winograd,
    winograd_last,
    winograd_middle,
    winograd_streamed,
    winograd_wide,
    winograd_widest,
)
from upconv.spec import Problem

CANDIDATES: tuple[Any, ...] = (
    direct, winograd, winograd_middle, winograd_wide, winograd_widest, winograd_streamed, strassen, strassen_twice, overlap_add,
    overlap_add_rows, direct_rows, depthwise, indirect_first,
)  # fmt: skip
"""Every kernel that plans choose from; the reference runs what none of them takes."""
LAST: tuple[Any, ...] = (indirect, overlap_add_last, winograd_last, strassen_last, depthwise_last)
"""Those for arrays that have their channels last."""
REORDERED, REORDERING = 5e9, 20e-6
"""Bytes a second and thread, read and written, of reordering between channels-first and channels-last; and the seconds that the
two calls more take. Measured."""

AS_FIRST = "reordered"
"""What advice calls it to reorder such arrays and run the channels-first plan."""

ALONE = 20e-6
"""Estimated seconds on all threads up to which one thread runs a call. The first call after a pause waits 0.04 to 0.11 ms until
another has woken up, those that follow do not. Measured of four layers at 24e-6 to 28e-6: two threads take 0.54 to 0.88 of the
time of one in calls that follow each other (one of them 1.3 in PyTorch's pool), 0.6 to 1.4 a millisecond after the last one."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What measuring has shown: the kernel to take, on how many threads, and seconds of every kernel measured."""

    kernel: str
    threads: int
    seconds: tuple[tuple[str, float], ...]

    def against(self, other: str) -> str | None:
        """Why not another kernel, where it was measured."""
        times = dict(self.seconds)
        return f"{times[other] / times[self.kernel]:.1f}x the measured time" if other in times else None


@dataclass(frozen=True, slots=True)
class Plan:
    """The chosen kernel for a problem, and the reasons. `print(plan)` explains it."""

    problem: Problem
    target: Target
    threads: int
    algorithm: str
    kernel: str
    note: str
    blocking: Any
    not_chosen: tuple[tuple[str, str], ...]

    @property
    def module(self) -> Any:
        """The kernel's module; None for the reference."""
        return next((c for c in (*CANDIDATES, *LAST) if self.algorithm == c.NAME), None)

    def __str__(self) -> str:
        problem, how = self.problem, self.blocking
        lines = [
            f"{problem.spec}      {problem.input_shape} -> {problem.output_shape} {problem.dtype}",
            f"kernel      {self.kernel}        {self.note}",
        ]
        direct_sum = problem.flops
        if self.module is not None:
            done = 2 * self.module.macs(problem, how)
            lines.append(f"work        {_flops(direct_sum)} direct, {_flops(done)} done ({done / max(direct_sum, 1):.2f})")
        size = problem.itemsize
        moved = [prod(shape) * size for shape in (problem.input_shape, problem.output_shape)]
        weight = prod(problem.spec.weight_shape) * size
        lines.append(f"traffic     {_bytes(moved[0])} in, {_bytes(moved[1])} out, {_bytes(weight)} weights")
        if self.module is not None:
            peak = self.target.peak_flops(size) * self.threads
            least = direct_sum / peak
            lines.append(
                f"limit       {least * 1e3:.3g} ms for the direct sum on {self.threads} "
                f"thread{'s' if self.threads > 1 else ''} at a nominal {self.target.hertz / 1e9:g} GHz"
            )
            lines.append(f"workspace   {_bytes(how.workspace_bytes)} a thread")
        if self.not_chosen:
            lines.append("not chosen  " + "; ".join(f"{name}: {reason}" for name, reason in self.not_chosen))
        return "\n".join(lines)

    @property
    def summary(self) -> str:
        """The plan in one line."""
        return f"{self.kernel}, {self.threads} thread{'s' if self.threads > 1 else ''}; {self.note}"


Offer = tuple[float, Any, Any]
"""Estimated seconds, a kernel and its blocking."""


def _offers(
    problem: Problem, target: Target, threads: int, precise: bool, kernels: tuple[Any, ...] = CANDIDATES
) -> tuple[list[Offer], list[tuple[str, str]]]:
    """What the kernels offer, and why others do not."""
    offers: list[Offer] = []
    rejected: list[tuple[str, str]] = []
    for kernel in kernels:
        reason = kernel.rejects(problem, target)
        if precise and not kernel.EXACT:
            reason = reason or "precise results are asked for, and its rounding is not the direct sum's"
        if reason:
            rejected.append((kernel.NAME, reason))
            continue
        how = kernel.blocking(problem, target, threads)
        offers.append((kernel.cost(problem, how, target, threads), kernel, how))
    return offers, rejected


@lru_cache(maxsize=4096)
def make_last(
    problem: Problem, target: Target | None, threads: int, advice: Advice | None = None, precise: bool = False
) -> Plan | None:
    """The plan for arrays that have their channels last, or None where it is better to reorder them.

    `advice` overrules the estimates as in `make`, or where it says AS_FIRST.
    """
    if target is None or problem.batch == 0:
        return None
    offers, rejected = _offers(problem, target, threads, precise, LAST)
    if not offers or (advice is not None and advice.kernel == AS_FIRST):
        return None
    advice = _of_use(advice, offers)
    if (enough := _enough(offers, advice, threads)) < threads:
        return make_last(problem, target, enough, advice, precise)
    firsts, refused = _offers(problem, target, threads, precise)
    moved = 2 * (prod(problem.input_shape) + prod(problem.output_shape)) * problem.itemsize
    reordering = moved / REORDERED / threads + REORDERING
    best = min(offers, key=_by(advice))[0]
    if advice is None and any(other + reordering < best for other, _, _ in firsts):
        return None
    measured = None if advice is None else advice.against(AS_FIRST)
    rejected += refused
    rejected += [
        (k.NAME, f"{measured or f'{(other + reordering) / best:.1f}x the estimated time'}, reordering included")
        for other, k, _ in firsts
    ]
    return _chosen(problem, target, threads, offers, rejected, advice)


@lru_cache(maxsize=4096)
def make(problem: Problem, target: Target | None, threads: int, advice: Advice | None = None, precise: bool = False) -> Plan:
    """The plan of a problem on a target; a target of None means a machine without a JIT.

    `advice` overrules the estimates where it names a kernel that takes the problem. `precise` leaves out kernels whose
    rounding is not the direct sum's.
    """
    if target is None:
        reason = "no code can be made on this machine"
        return Plan(problem, Target("none", "", "", "", 0, 0, 0, 0, False), 1, "reference", "reference", reason, None, ())
    if problem.batch == 0:
        return Plan(problem, target, 1, "reference", "reference", "nothing to compute", None, ())
    offers, rejected = _offers(problem, target, threads, precise)
    if not offers:
        note = "no compiled kernel takes this problem"
        return Plan(problem, target, 1, "reference", "reference", note, None, tuple(rejected))
    advice = _of_use(advice, offers)
    if (enough := _enough(offers, advice, threads)) < threads:
        return make(problem, target, enough, advice, precise)
    return _chosen(problem, target, threads, offers, rejected, advice)


def _of_use(advice: Advice | None, offers: list[Offer]) -> Advice | None:
    """The advice, unless it names a kernel that offers nothing."""
    return advice if advice is not None and any(advice.kernel == k.NAME for _, k, _ in offers) else None


def _enough(offers: list[Offer], advice: Advice | None, threads: int) -> int:
    """How many of so many threads are enough: 1 where the work is not worth waking another, or as advised."""
    if advice is not None:
        return min(advice.threads, threads)
    return 1 if min(cost for cost, _, _ in offers) < ALONE else threads


def _by(advice: Advice | None) -> Callable[[Offer], tuple[bool, float]]:
    """The order of offers: the advised kernel, then the least time."""
    return lambda offer: (advice is not None and advice.kernel != offer[1].NAME, offer[0])


def _chosen(
    problem: Problem, target: Target, threads: int, offers: list[Offer], rejected: list[tuple[str, str]], advice: Advice | None
) -> Plan:
    """The plan of the first offer, and why not the others."""
    (best, kernel, how), *others = sorted(offers, key=_by(advice))
    for cost, k, _ in others:
        measured = None if advice is None else advice.against(k.NAME)
        rejected.append((k.NAME, measured or f"{cost / best:.1f}x the estimated time"))
    name, note = kernel.code_name(problem, how, target), kernel.describe(problem, how)
    if advice is not None:
        note += "; chosen by wisdom: measured on this processor"
    return Plan(problem, target, min(threads, kernel.tasks(problem, how)), kernel.NAME, name, note, how, tuple(rejected))


def _flops(value: float) -> str:
    for unit, name in ((1e9, "GFLOP"), (1e6, "MFLOP")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f} FLOP"


def _bytes(value: float) -> str:
    for unit, name in ((1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f} B"
