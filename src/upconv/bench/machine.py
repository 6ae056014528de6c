"""What the machine can do: multiply-adds a second and bytes copied a second, by emitted code on every thread.

The two give the least time that a direct sum can take: the larger of its flops at the one and of the bytes that any
algorithm must move at the other. A gauge measures both, for their best or, as contenders in turn with a layer's, for what the
machine does at that time and in such calls.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv import execute
from upconv.bench.timing import Times
from upconv.codegen import jit, memory, threads
from upconv.codegen.ir import SIZES, Carry, Function, Value, module, vector
from upconv.codegen.target import Target
from upconv.kernels import job as jobs

SUMS = 14  # independent sums: fused multiply-adds take 4 cycles and two start a cycle; with two factors, 16 registers
STEPS = 20_000  # of SUMS multiply-adds each, in a task
COPIED = 64 << 20  # bytes read, and as many written: past the caches of one core
LINE = 64
MULTIPLIED, COPIES = "multiply-adds", "copies"
"""The contenders' names."""

_MULTIPLY = jobs.Slots(("out", "start", "steps"))
_COPY = jobs.Slots(("to", "from", "lines"))


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured; `flops` and `bytes` are a second's."""

    processor: str
    target: str
    threads: int
    flops: float
    bytes: float

    def limit(self, flops: float, moved: float) -> float:
        """Seconds that a direct sum of so many flops, moving so many bytes, takes at the least."""
        return max(flops / self.flops, moved / self.bytes)

    @staticmethod
    def settled(several: Sequence[Machine]) -> Machine:
        """The median of what was measured several times.

        >>> Machine.settled([Machine("a processor", "avx2", 2, flops, 1e9) for flops in (1e9, 4e9, 2e9)]).flops
        2000000000.0
        """
        flops, moved = (median(getattr(m, what) for m in several) for what in ("flops", "bytes"))
        return replace(several[0], flops=flops, bytes=moved)


def processor() -> str:
    """The processor's name as its maker gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model")))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Gauge:
    """Multiply-adds and copies on `count` threads; of the two ways to copy, past the caches or through them, the faster here.

    Raises ImportError where no code can be made.
    """

    def __init__(self, count: int):
        target = execute.target()
        if target is None:
            raise ImportError("the bench measures the machine with code of its own, and llvmlite is not here: pip install llvmlite")
        self._kind = (processor(), target.name, count)
        self._multiplier = _multiplier(target, count)
        self._copier = max((_copier(target, count, streaming) for streaming in (False, True)), key=lambda work: work.best(3))

    def best(self, tries: int = 5) -> Machine:
        """The best of a few tries, one after the other."""
        return Machine(*self._kind, self._multiplier.best(tries), self._copier.best(tries))

    @property
    def calls(self) -> dict[str, Callable[[], None]]:
        """Contenders that do a known amount each."""
        return {MULTIPLIED: self._multiplier.run, COPIES: self._copier.run}

    def machine(self, times: Mapping[str, Times]) -> Machine:
        """What the machine did in a race that these contenders took part in, in the median."""
        works = ((self._multiplier, times[MULTIPLIED]), (self._copier, times[COPIES]))
        return Machine(*self._kind, *(work.amount / taken.median for work, taken in works))


class _Work:
    """A job that does a known amount of something; the arrays it works on live as long as it does."""

    def __init__(self, slots: jobs.Slots, code: jit.Code, tasks: int, count: int, target: Target, values: dict[str, int]):
        self.amount, self.threads, self.target, self.code = 0.0, count, target, code
        self.slots = jobs.filled(slots, values, tasks, count)
        self.arrays: list[Any] = [self.slots]

    def best(self, tries: int) -> float:
        """The most a second of a few runs, after one that is not counted."""
        return self.amount / min([self._seconds() for _ in range(1 + tries)][1:])

    def run(self) -> None:
        self.slots[jobs.NEXT] = self.slots[jobs.TAKEN] = 0
        threads.run(self.code["entry"], self.slots.ctypes.data, self.threads, self.target)

    def _seconds(self) -> float:
        start = perf_counter()
        self.run()
        return perf_counter() - start


def _aligned(array: NDArray[Any]) -> int:
    """The first address in the array that begins a cache line."""
    return -(-memory.address(array) // LINE) * LINE


def _multiplier(target: Target, count: int) -> _Work:
    """Multiply-adds that wait for nothing; its amount is in flops."""
    text = _emit_multiply(target)
    code = jit.get("peak", text, ("entry",), lambda: text, target)
    tasks = 16 * count
    out, start = memory.empty((tasks * LINE // 4,), np.float32), np.arange(SUMS * target.lanes(4), dtype=np.float32)
    values = {"out": memory.address(out), "start": memory.address(start), "steps": STEPS}
    work = _Work(_MULTIPLY, code, tasks, count, target, values)
    work.arrays += [out, start]
    work.amount = 2.0 * target.lanes(4) * SUMS * STEPS * tasks
    return work


def _emit_multiply(target: Target) -> str:
    """The sums start from numbers that the compiler does not know: of known ones it folds those that stay as they are."""
    type_ = vector("float", target.lanes(4))

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        factor, term = f.splat(0.5, type_), f.splat(1.0, type_)
        start = _MULTIPLY.pointer(f, job, "start")
        carry = Carry([f.load(type_, start[i * target.lanes(4)]) for i in range(SUMS)])
        with f.loop(0, _MULTIPLY.read(f, job, "steps"), name="step", carry=carry):
            carry.next = [f.fma(s, factor, term) for s in carry.values]
        total = carry.results[0]
        for s in carry.results[1:]:
            total = f.fadd(total, s)
        f.store(total, _MULTIPLY.pointer(f, job, "out")[number * (LINE // 4)])

    return module([jobs.emit_entry("entry", _MULTIPLY, task)])


def _copier(target: Target, count: int, streaming: bool) -> _Work:
    """Copies COPIED bytes; its amount is in bytes moved, each being read and written."""
    text = _emit_copy(target, streaming)
    code = jit.get("copy", text, ("entry",), lambda: text, target)
    tasks = 16 * count
    lines = COPIED // LINE // tasks
    arrays = [np.ones(COPIED + LINE, np.uint8) for _ in range(2)]
    start, end = map(_aligned, arrays)
    work = _Work(_COPY, code, tasks, count, target, {"from": start, "to": end, "lines": lines})
    work.arrays += arrays
    work.amount = 2.0 * lines * LINE * tasks
    return work


def _emit_copy(target: Target, streaming: bool) -> str:
    """`streaming` stores go round the caches, so that no line is read before it is written."""
    lanes = target.lanes(4)
    type_, bytes_ = vector("float", lanes), lanes * SIZES["float"]

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        lines = _COPY.read(f, job, "lines")
        first = number * lines * (LINE // 4)
        source, to = _COPY.pointer(f, job, "from")[first], _COPY.pointer(f, job, "to")[first]
        with f.loop(0, lines, name="line") as i:
            for part in range(0, LINE, bytes_):
                at = i * (LINE // 4) + part // 4
                value = f.load(type_, source[at], bytes_)
                if streaming:
                    f.stream(value, to[at])
                else:
                    f.store(value, to[at], bytes_)
        if streaming:
            f.do("fence seq_cst")

    return module([jobs.emit_entry("entry", _COPY, task)])
