"""Runs one kernel module on arrays, whatever the plan would choose; the layers and data that kernel tests draw.

Tests are written against what every kernel module offers, and parametrised over `planner.CANDIDATES`: a new kernel inherits
them all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from numpy.typing import NDArray

from upconv import planner
from upconv.codegen import jit
from upconv.codegen import target as targets
from upconv.codegen import threads as workers
from upconv.kernels import job as jobs
from upconv.kernels import reference, weights, winograd, winograd_blocks, winograd_cuts
from upconv.kernels.winograd_tiles import lines
from upconv.spec import ConvSpec, Problem, SpecError

KERNELS = planner.CANDIDATES
ACTIVATIONS = (None, "relu", ("leaky_relu", 0.25), "elu", "sigmoid", "tanh", "silu")


def levels() -> list[str]:
    """The targets this machine can run, best first."""
    found = []
    for level in (None, *targets.X86_LEVELS):
        try:
            name = targets.host(level).name
        except ValueError:
            continue
        if name not in found:
            found.append(name)
    return found


def ends() -> list[Any]:
    """The levels for tests of many layers: those between the best and the least are `long`, for other machines' best they are."""
    best, *others = levels()
    return [best, *(pytest.param(level, marks=pytest.mark.long) for level in others[:-1]), *others[-1:]]


def best() -> list[Any]:
    """The levels for tests of very many layers, whose code is slow to compile: all but the best are `long`."""
    first, *others = levels()
    return [first, *(pytest.param(level, marks=pytest.mark.long) for level in others)]


def target_of(level: str) -> targets.Target:
    return targets.host(level if level in targets.X86_LEVELS else None)


def small(target: targets.Target) -> targets.Target:
    """The target with few registers and so small a second-level cache that weights of a handful of channels are read in streams."""
    return replace(target, registers=16, l2=4 << 10)


def exact(module: Any) -> bool:
    """Whether a kernel's sums are the direct sum's products (no transforms), so that integers come out exactly."""
    return getattr(module, "EXACT", True)


def make(transposed: bool = True, batch: int = 1, size: Any = (5,), dtype: str = "float32", **layer: Any) -> Problem:
    """A problem from the arguments of `ConvSpec.make`; `size` is the spatial input size."""
    spec = ConvSpec.make(transposed=transposed, rank=len(size), **layer)
    return Problem(spec, batch, tuple(size), spec.output_size(size), dtype)


@dataclass(frozen=True)
class Operands:
    """Input arrays, and the reference's output."""

    x: NDArray[Any]
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    expected: NDArray[Any]


def operands(problem: Problem, bias: bool = True, integers: bool = True, seed: int = 0) -> Operands:
    """Small integers (every sum is exact below 2**24) or normal numbers."""
    rng = np.random.default_rng(seed)
    spec = problem.spec

    def numbers(shape: tuple[int, ...]) -> NDArray[Any]:
        drawn = rng.integers(-4, 5, shape) if integers else rng.standard_normal(shape)
        return drawn.astype(problem.dtype)

    x, weight = numbers(problem.input_shape), numbers(spec.weight_shape)
    b = numbers((spec.out_channels,)) if bias else None
    return Operands(x, weight, b, reference.forward(spec, x, weight, b, problem.output_size))


class Plain:
    """Where the buffers of a run come from: ordinary memory. `fences.Fenced` is the other kind."""

    def hold(self, array: NDArray[Any]) -> NDArray[Any]:
        """A buffer that holds what a kernel only reads."""
        return array

    def room(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """A buffer to write, poisoned: every byte 255, which is NaN in both formats."""
        return np.frombuffer(bytearray(b"\xff") * (int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)

    def workspace(self, size: int) -> NDArray[Any]:
        """A poisoned buffer of bytes that starts on a whole 64."""
        memory = np.full(size + 64, 255, np.uint8)
        skip = -memory.ctypes.data % 64
        return memory[skip : skip + size]


class Kept(Plain):
    """Keeps the workspace, the first buffer of bytes that is asked for."""

    def __init__(self) -> None:
        self.kept: list[NDArray[Any]] = []

    def workspace(self, size: int) -> NDArray[Any]:
        self.kept.append(super().workspace(size))
        return self.kept[-1]


def run_kernel(
    module: Any,
    problem: Problem,
    given: Operands,
    target: targets.Target,
    threads: int = 1,
    buffers: Any = None,
    only: int | None = None,
) -> NDArray[Any]:
    """The output of this kernel, run on up to `threads` threads; of one task where it is `only` that."""
    buffers = buffers or Plain()
    how = module.blocking(problem, target, threads)
    name, parameters = module.code_name(problem, how, target), module.code_parameters(problem, how)
    code = jit.get(name, parameters, ("entry",), lambda: module.emit(problem, how), target)
    bound = module.bind(problem, how)
    bias = np.zeros(problem.spec.out_channels, problem.dtype) if given.bias is None else given.bias
    y = buffers.room(problem.output_shape, problem.dtype)
    workspace = buffers.workspace(how.workspace_bytes * threads)
    arrays = {
        "x": buffers.hold(given.x),
        "weight": buffers.hold(weights.reference(module.weight_layout(problem, how), given.weight)),
        "bias": buffers.hold(bias),
        "y": y,
        "workspace": workspace,
        **{table: buffers.hold(numbers) for table, numbers in bound.tables.items()},
    }
    slots = module.SLOTS
    memory = buffers.workspace(-(-len(slots.names) * 8 // 64) * 64)
    job = memory.view(np.int64)
    job[:] = 0
    for slot, value in {**bound.slots, **{k: a.ctypes.data for k, a in arrays.items()}}.items():
        job[slots.index[slot]] = value
    job[jobs.SEATS] = threads
    job[jobs.NEXT], job[jobs.TASKS] = (0, bound.tasks) if only is None else (only, only + 1)
    workers.run(code["entry"], job.ctypes.data, threads, target)
    return np.array(y)


def columns_of(problem: Problem, how: Any, number: int) -> list[tuple[int, tuple[int, ...]] | None]:
    """(image, number in each dimension) of the tiles of block `number` of Winograd's, in its table's order; None for no tile."""
    cut, of = how.cut, lines(problem, how.ways)
    units, longer = divmod(cut.units, cut.pieces)
    part, piece = divmod(number, cut.pieces)
    low, high = (min((n * units + min(n, longer)) * cut.unit, cut.length) for n in (piece, piece + 1))
    counts = [line.positions for line in of]

    def tile(image: int, place: int) -> tuple[int, tuple[int, ...]]:
        return image, tuple(int(n) for n in np.unravel_index(place, counts))

    if how.by_position:
        return [tile(image, part) for image in range(low, high)]
    parts, length = winograd.image_parts(problem, how)
    if parts == 1:
        return [tile(*divmod(part * cut.length + column, length)) for column in range(low, high)]
    found: list[tuple[int, tuple[int, ...]] | None] = []
    for first in range(low // parts, high // parts, how.tile.lanes):
        for part, lane in np.ndindex(parts, how.tile.lanes):  # a vector of each part in turn
            image, place = divmod(first + lane, length)
            own = part * length + place < np.prod(counts)  # else it is the first part's over again
            found.append(tile(image, part * length * own + place) if first + lane < high // parts else None)
    return found


def share_blocks(threshold: float = inf) -> None:
    """Slices are parts of images, which share blocks, wherever these are small, not only where it is worth it."""
    winograd_cuts.IN_PARTS = threshold
    winograd_blocks.blocking.cache_clear()


def number_by_position(threshold: float = inf) -> None:
    """Winograd's tiles position by position wherever their last ones can do without a point, not only where it is worth it."""
    winograd_cuts.BY_POSITION = threshold
    winograd_blocks.blocking.cache_clear()


# -- what is drawn ---------------------------------------------------------------------------------------------------------


def _per_dimension(draw: Any, rank: int, numbers: Any) -> tuple[Any, ...]:
    return tuple(draw(numbers) for _ in range(rank))


@st.composite
def problems(draw: Any, activations: bool = False) -> Problem:
    """Layers over all arguments, with sizes small enough for the reference."""
    rank, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups = draw(st.sampled_from((1, 1, 1, 2, 3)))
    depthwise = draw(st.integers(0, 5)) == 0
    inner, outer = (1, draw(st.integers(1, 3))) if depthwise else (draw(st.integers(1, 18)), draw(st.integers(1, 21)))
    tiled = draw(st.integers(0, 5)) == 0  # kernel = stride, with channels that can be halved and quartered
    inner, outer = (4 * draw(st.integers(1, 5)), 4 * draw(st.integers(1, 5))) if tiled and not depthwise else (inner, outer)
    windowed = not depthwise and not tiled and rank > 1 and draw(st.integers(0, 2)) == 0  # whole taps, few tiles: a window each
    inner, outer = (draw(st.integers(8, 40)), draw(st.integers(2, 21))) if windowed else (inner, outer)
    groups = draw(st.sampled_from((1, 5, 8))) if depthwise else groups
    stride = _per_dimension(draw, rank, st.sampled_from((1, 2, 2, 3, 4, 5)))
    if rank == 1 and draw(st.integers(0, 4)) == 0:
        stride = (draw(st.integers(6, 40)),)
    dilation = (1,) * rank if tiled or windowed else _per_dimension(draw, rank, st.sampled_from((1, 1, 2, 3)))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    longest = 7 if windowed else (70, 14, 6)[rank - 1]
    kernel = stride if tiled else _per_dimension(draw, rank, st.integers(1, 5))
    kernel = tuple(s * draw(st.integers(2, 3)) for s in stride) if windowed else kernel
    try:
        return make(
            transposed=transposed,
            batch=draw(st.sampled_from((1, 1, 2, 3))),
            size=_per_dimension(draw, rank, st.one_of(st.just(1), st.integers(1, longest))),
            dtype=draw(st.sampled_from(("float32", "float32", "float64"))),
            in_channels=groups * inner,
            out_channels=groups * outer,
            kernel_size=kernel,
            stride=stride,
            padding=tuple((draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in range(rank)),
            output_padding=extra if transposed else 0,
            dilation=dilation,
            groups=groups,
            activation=draw(st.sampled_from(ACTIVATIONS)) if activations else None,
        )
    except SpecError:
        assume(False)
        raise


def threads_allowed() -> int:
    """Threads for tests of parallel runs: two wherever there are two processors."""
    return min(2, workers.available(), os.cpu_count() or 1)
