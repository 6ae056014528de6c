"""One layer's contest: every contender made, compared with the others, and timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv import execute
from upconv.bench import cold, rivals, timing
from upconv.bench.machine import Gauge, Machine
from upconv.bench.suite import Layer
from upconv.bench.timing import Times, race
from upconv.codegen import threads

OURS, LAST, DEFAULT = "upconv", "upconv channels-last", "torch"
CLOSE = 1e-3  # of the largest output: a rival that is further off computes something else, and is not timed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one layer's contest gave. Times are in seconds.

    `first` holds each contender's time from nothing to its first result, `refused` why a rival did not take part;
    `difference` is our largest from `judge`, relative to its largest output; `machine` is what the machine did in turn with
    the contenders.
    """

    layer: Layer
    kernel: str
    note: str
    times: Mapping[str, Times]
    first: Mapping[str, float]
    refused: Mapping[str, str] = field(default_factory=dict)
    judge: str | None = None
    difference: float | None = None
    cold: cold.Cold | None = None
    machine: Machine | None = None

    @property
    def ours(self) -> float:
        return self.times[OURS].median

    @property
    def better(self) -> float:
        """Our time in the faster of the two layouts, as far as both were timed."""
        return min(self.times[name].median for name in (OURS, LAST) if name in self.times)

    @property
    def fastest(self) -> str | None:
        """The rival with the least median; None where none took part."""
        others = {name: t.median for name, t in self.times.items() if name not in (OURS, LAST)}
        return min(others, key=others.__getitem__) if others else None

    @property
    def ratio(self) -> float | None:
        """How many times faster we are than the fastest rival."""
        return None if self.fastest is None else self.times[self.fastest].median / self.ours

    @property
    def ratio_better(self) -> float | None:
        """The same in the faster of our layouts."""
        return None if self.fastest is None else self.times[self.fastest].median / self.better

    @property
    def ratio_default(self) -> float | None:
        """How many times faster we are than PyTorch as most people call it."""
        return self.times[DEFAULT].median / self.ours if DEFAULT in self.times else None


@contextmanager
def using(count: int) -> Iterator[None]:
    """Our calls take `count` threads inside, and what they took before afterwards; torch's number is put back too."""
    before, loaded = threads._chosen, rivals.torch_threads()
    threads.set_num_threads(count)
    try:
        yield
    finally:
        threads._chosen = before
        rivals.torch_threads(loaded)


def case_of(layer: Layer, count: int) -> rivals.Case:
    """The layer with arrays of its sizes, the same numbers each time."""
    rng, problem = np.random.default_rng(0), layer.problem
    spec = problem.spec

    def drawn(shape: tuple[int, ...]) -> NDArray[Any]:
        return rng.standard_normal(shape, np.float32)

    bias = drawn((spec.out_channels,)) if layer.bias else None
    return rivals.Case(spec, drawn(problem.input_shape), drawn(spec.weight_shape), bias, count)


def _start(case: rivals.Case, makers: Mapping[str, Callable[[rivals.Case], rivals.Call]]) -> tuple[dict[str, Any], ...]:
    """(calls, first results, seconds to them, reasons of those that refused)."""
    calls: dict[str, rivals.Call] = {}
    results: dict[str, NDArray[Any]] = {}
    first: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, make in makers.items():
        start = perf_counter()
        try:
            call = make(case)
            value = call()
        except Exception as error:
            if name == OURS:
                raise
            refused[name] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            continue
        first[name] = perf_counter() - start
        calls[name], results[name] = call, rivals.result(value).copy()
    return calls, results, first, refused


def _apart(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The largest difference, relative to the largest of b."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30))


def settled(several: Sequence[Outcome]) -> Outcome:
    """A layer's contests, one each pass, as one: of those contenders that took part in all of them."""
    names = [name for name in several[0].times if all(name in o.times for o in several)]
    machines = [o.machine for o in several if o.machine is not None]
    times = {name: timing.settled([o.times[name] for o in several]) for name in names}
    return replace(several[0], times=times, machine=Machine.settled(machines) if machines else None)


def play(
    layer: Layer, names: Mapping[str, rivals.Rival], count: int, seconds: float, with_cold: bool = True, gauge: Gauge | None = None
) -> Outcome:
    """Time our call of a layer and those of the rivals named, `seconds` in all, on `count` threads; a gauge's in turn with them."""
    case = case_of(layer, count)
    last = {LAST: rivals.upconv_last} if "torch channels-last" in names and case.spec.rank > 1 else {}
    makers = {OURS: rivals.upconv, **last, **{name: rival.make for name, rival in names.items()}}
    calls, results, first, refused = _start(case, makers)
    judge = DEFAULT if DEFAULT in results else next((name for name in results if name not in (OURS, LAST)), None)
    difference = None if judge is None else _apart(results[OURS], results[judge])
    for name in [n for n in results if n != OURS and judge is not None and _apart(results[n], results[judge]) > CLOSE]:
        refused[name] = f"its result is not {judge}'s"
        del calls[name]
    times = race(calls | (gauge.calls if gauge else {}), seconds)
    machine = gauge.machine(times) if gauge else None
    times = {name: times[name] for name in calls}
    problem = layer.problem
    plan = execute.make_plan(problem.spec, problem.batch, problem.input_size, problem.dtype)
    found = cold.measure(problem, layer.bias, count) if with_cold else None
    return Outcome(layer, plan.kernel, plan.note, times, first, refused, judge, difference, found, machine)
