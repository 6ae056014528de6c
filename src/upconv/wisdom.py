"""Autotuning: every kernel that can run a layer is timed here and now, and plans follow the fastest from then on.

>>> from upconv import ConvSpec, wisdom
>>> up = ConvSpec.make(transposed=True, in_channels=8, out_channels=8, kernel_size=4, stride=2, padding=1, rank=1)
>>> print(wisdom.tune(up, (1, 8, 64), seconds=0.01, keep=False).note.split("; ")[-1])
chosen by wisdom: measured on this processor

What is learnt stays in a readable JSON file (UPCONV_WISDOM, or one in the user's data folder; "off" for none), by processor,
layer, sizes (up to the next power of two), dtype, number of threads and memory order. Nothing is measured unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv import advice, execute, execute_reorder, planner
from upconv.artifacts.layers import spec_of
from upconv.bench.timing import race
from upconv.codegen import memory
from upconv.codegen.target import Target
from upconv.codegen.threads import get_num_threads
from upconv.planner import Advice, Plan
from upconv.spec import Problem, SpecError, integer

__all__ = ["export", "forget", "load", "path", "tune"]

path = advice.path
FEW = 2e8
"""Flops up to which one thread may beat several: waking them costs some ten microseconds."""


def tune(
    layer: Any,
    input_shape: Sequence[int],
    *,
    dtype: str = "float32",
    channels_last: bool = False,
    seconds: float = 0.5,
    keep: bool = True,
) -> Plan:
    """Measure the kernels that can run `layer` on an input of this shape; the plan that follows from it.

    >>> from upconv import nn
    >>> print(tune(nn.Conv1d(4, 4, 3), (4, 32), seconds=0.01, keep=False).problem.output_shape)
    (1, 4, 30)

    `layer` is a ConvSpec, or a layer of upconv.nn, torch.nn or upconv.torch; `input_shape` is (N, C, *spatial) or
    (C, *spatial). With `channels_last` calls on tensors in that memory format are measured, and follow: the kernels for such
    arrays, and the channels-first plan with its input and output reordered. Takes about `seconds`, and compiles what it
    measures. With `keep` the user's file learns it, and every later call of such a layer follows, in this process too.
    Measured with as many threads as calls take now (`set_num_threads`). Raises SpecError for a shape that does not fit, where
    no kernel runs the layer, and where the file in the place of the user's is another; TypeError for something that is no layer.
    """
    problem, count = _problem(layer, input_shape, dtype), get_num_threads()
    if keep:
        advice.kept()  # whatever is wrong with the file is said before the work
    found = _raced(_calls_last(problem) if channels_last else _calls(problem), problem, seconds)
    best, threads = min(found, key=found.__getitem__)
    fastest = {name: min(t for (n, _), t in found.items() if n == name) for name, _ in found}
    learnt = Advice(best, threads, tuple(fastest.items()))
    if keep:
        target = execute.target()
        assert target is not None
        advice.keep({advice.processor(target): {advice.key(problem, count, channels_last): learnt}})
        execute.forget()
    if not channels_last:
        return planner.make(problem, execute.target(), count, learnt)
    plan = planner.make_last(problem, execute.target(), count, learnt)
    if plan is None:
        plan = execute._plan(problem, count)
        plan = replace(plan, note=f"{plan.note}; reordered and back; chosen by wisdom: measured on this processor")
    return plan


def export(file: str | Path) -> int:
    """Write all that the user's file holds to another file; how many layers that were.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = export(f"{folder}/wisdom.json")
    ...     load(f"{folder}/wisdom.json") == exported
    True

    Raises SpecError where UPCONV_WISDOM is off, or where another file is in the place of the user's.
    """
    book = advice.kept()
    advice.write(Path(file), book)
    return sum(map(len, book.values()))


def load(file: str | Path) -> int:
    """Add what another file holds to the user's, in place of what that says about the same; how many layers that were.

    >>> load("no-such-file.json")
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'no-such-file.json'

    Entries of other processors are kept for them. Raises SpecError for a file of another kind; nothing is changed then.
    """
    book = advice.read(Path(file))
    advice.keep(book)
    execute.forget()
    return sum(map(len, book.values()))


def forget() -> int:
    """Empty the user's file; how many layers it held. Plans follow estimates again. Raises SpecError as `export`."""
    count = sum(map(len, advice.kept().values()))
    advice.replace_all({})
    execute.forget()
    return count


def _problem(layer: Any, input_shape: Sequence[int], dtype: str) -> Problem:
    """The zero-padded problem that a kernel runs for the layer."""
    spec = spec_of(layer)
    shape = tuple(integer(f"input_shape[{i}]", n, 1) for i, n in enumerate(input_shape))
    if len(shape) == spec.rank + 1:
        shape = (1, *shape)
    if len(shape) != spec.rank + 2 or shape[1] != spec.in_channels:
        raise SpecError(f"input_shape is {tuple(input_shape)}: {spec} takes (N, {spec.in_channels}, *{spec.rank} sizes)")
    if dtype not in ("float32", "float64"):
        raise SpecError(f"dtype is {dtype!r}: use float32 or float64")
    size = shape[2:]
    return execute._core(Problem(spec, shape[0], size, spec.output_size(size), dtype))[0]


Calls = dict[tuple[str, int], Callable[[], object]]
"""What runs the problem: (kernel, threads) -> a call."""
Operands = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def _raced(calls: Calls, problem: Problem, seconds: float) -> dict[tuple[str, int], float]:
    """Seconds of each call."""
    if not calls:
        raise SpecError(f"no compiled kernel takes {problem.spec}, so there is nothing to choose from")
    names = {f"{name} {threads}": (name, threads) for name, threads in calls}
    raced = race({name: calls[which] for name, which in names.items()}, seconds)
    return {which: raced[name].median for name, which in names.items()}


def _calls(problem: Problem) -> Calls:
    """Every kernel that can run the problem."""
    return _kernels(problem, _operands(problem), planner.CANDIDATES, planner.make)


def _calls_last(problem: Problem) -> Calls:
    """Every kernel that can run it for arrays with their channels last, and the channels-first plan with both reordered."""
    operands = _operands(problem)
    calls = _kernels(problem, operands, planner.LAST, planner.make_last)
    plan = execute._plan(problem, get_num_threads())
    if plan.module is not None:
        calls[planner.AS_FIRST, plan.threads] = _reordered(execute.Prepared(plan), *operands)
    return calls


def _kernels(problem: Problem, operands: Operands, kernels: Sequence[Any], make: Callable[..., Plan | None]) -> Calls:
    """Those of the kernels that can run the problem, by the plans that `make` makes for them."""
    target, count, calls = _target(), get_num_threads(), Calls()
    for kernel in kernels:
        if kernel.rejects(problem, target):
            continue
        for threads in _threads(problem, count):
            plan = make(problem, target, count, Advice(kernel.NAME, threads, ((kernel.NAME, 1.0),)))
            assert plan is not None
            calls.setdefault((plan.algorithm, plan.threads), _call(execute.Prepared(plan), *operands))
    return calls


def _target() -> Target:
    target = execute.target()
    if target is None:
        raise SpecError("no code can be made on this machine, so there is nothing to choose from: pip install llvmlite")
    return target


def _threads(problem: Problem, count: int) -> tuple[int, ...]:
    return (1, count) if problem.flops < FEW else (count,)


def _operands(problem: Problem) -> Operands:
    """(x, weight, y) with room for either order."""
    rng = np.random.default_rng(0)
    x, weight = (rng.standard_normal(s).astype(problem.dtype) for s in (problem.input_shape, problem.spec.weight_shape))
    weight.flags.writeable = False
    return x, weight, np.empty(problem.output_shape, problem.dtype)


def _call(prepared: execute.Prepared, *operands: Any) -> Callable[[], object]:
    x, weight, y = operands
    return lambda: prepared(x, weight, None, y)


def _reordered(prepared: execute.Prepared, *operands: Any) -> Callable[[], object]:
    """A call as `upconv.torch` makes it for a tensor that is reordered."""
    (x, weight, y), target = operands, execute.target()

    def call() -> object:
        first = execute_reorder.reordered(memory.address(x), x.shape, x.dtype, False, target)
        assert first is not None
        prepared(first, weight, None, y)
        return execute_reorder.reordered(memory.address(y), y.shape, y.dtype, True, target)

    return call
