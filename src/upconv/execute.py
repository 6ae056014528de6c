"""Binds a plan to memory and threads.

A call finds its `Prepared` problem (plan, loaded code, a job template) by layer and sizes, packs the weight unless it is
packed already, fills the template's addresses in, and runs it.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv import advice, execute_reorder, execute_weight
from upconv import planner as plans
from upconv.codegen import jit, memory, threads
from upconv.codegen.launch import Where, launcher
from upconv.codegen.target import Target, host
from upconv.execute_packing import Packer, Version, frozen, packed_content, packed_weight
from upconv.kernels import job as jobs
from upconv.kernels import reference
from upconv.kernels.fingerprint import SMALL
from upconv.shapes.dual import dual
from upconv.spec import ConvSpec, Problem


@lru_cache(maxsize=1)
def target() -> Target | None:
    """The machine to write code for, or None where none can be written."""
    return host() if jit.AVAILABLE else None


_packings: dict[Any, int] = {}
"""Ways of packing a weight, numbered: a number is found in a dictionary in a tenth of the time."""
_numbers = count()  # each is given once, whichever threads ask at once


class Prepared:
    """A problem ready to run: its plan, its code, and the job's numbers."""

    __slots__ = (
        "_idle", "_kept", "_launch", "_packer", "_seen", "_tables", "_template",
        "address", "packing", "plan", "threads", "workspace",
    )  # fmt: skip

    def __init__(self, plan: plans.Plan):
        self.plan = plan
        kernel, problem, how = plan.module, plan.problem, plan.blocking
        parameters = kernel.code_parameters(problem, how)
        code = jit.get(plan.kernel, parameters, ("entry",), lambda: kernel.emit(problem, how), plan.target)
        self.address = code["entry"]
        bound = kernel.bind(problem, how)
        slots = kernel.SLOTS
        template = (ctypes.c_int64 * len(slots.names))()
        for name, value in bound.slots.items():
            template[slots.index[name]] = value
        for name, table in bound.tables.items():
            template[slots.index[name]] = table.ctypes.data
        template[jobs.TASKS], template[jobs.SEATS] = bound.tasks, plan.threads
        no_bias = np.zeros(problem.spec.out_channels, problem.dtype)
        self._tables = bound.tables, no_bias
        self._template = template
        self._idle: list[_Job] = []
        self._kept: tuple[Any, NDArray[Any]] | None = None
        self._seen: tuple[int, int, Any, bytes, NDArray[Any]] = (0, 0, None, b"", no_bias)
        self.threads = plan.threads
        self._launch = launcher(self.address, slots.index, no_bias.ctypes.data, plan.target, alone=plan.threads == 1)
        self._packer: Packer | None = None
        self.workspace = how.workspace_bytes * plan.threads + 64
        packing = (problem.spec, problem.dtype, kernel.NAME, kernel.packing(problem, how))
        self.packing = _packings.setdefault(packing, next(_numbers))

    def __call__(self, x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None, y: NDArray[Any]) -> None:
        """Fills y. All arrays are C-contiguous, of the problem's shapes (y's leading batch may be left off) and dtype."""
        self.run(x, self._packed(weight), bias, y)

    def _packed(self, weight: NDArray[Any]) -> NDArray[Any]:
        """The packed weight; at once where the last call's weight comes again and cannot have changed."""
        kept = self._kept
        if kept is not None and kept[0]() is weight and frozen(weight):
            return kept[1]
        if not frozen(weight):
            return self.packed_at(memory.address(weight), weight.nbytes, lambda: weight)
        packed = packed_weight(self, weight)
        self._kept = (weakref.ref(weight), packed)
        return packed

    def packed_at(
        self, address: int, size: int, weight: Callable[[], NDArray[Any]], last: bool = False, version: Version | None = None
    ) -> NDArray[Any]:
        """The packed form of the weight of `size` bytes that now stands at an address, which `weight` makes an array of.

        The same bytes are another weight where they hold its channels `last`. For its `version` see `packed_content`.
        """
        if last or version is not None:
            return packed_content(self, address, size, weight, last, version)
        seen = self._seen
        if seen[0] == address and seen[1] == size and seen[2].raw == seen[3]:
            return seen[4]
        packed = packed_content(self, address, size, weight)
        if size <= SMALL:  # known again in a tenth of a microsecond
            here = (ctypes.c_char * size).from_address(address)
            self._seen = (address, size, here, here.raw, packed)
        return packed

    @property
    def packer(self) -> Packer:
        """What packs this problem's weights, made on first use."""
        if self._packer is None:
            self._packer = Packer(self.plan)
        return self._packer

    def run(self, x: Where, weight: Where, bias: Where | None, y: Where) -> None:
        """Runs the job on these arrays."""
        try:
            job = self._idle.pop()
        except IndexError:
            job = _Job(self._template)
        try:
            arena = _arenas.pop()
            if arena.size < self.workspace:  # too small: given up for a larger
                arena = _Arena(self.workspace)
        except IndexError:
            arena = _Arena(self.workspace)
        count = self.threads
        team = threads.teams.get(count, 0) if count > 1 else 0
        self._launch(job.address, arena.address, x, weight, bias, y, team)
        if count > 1 and not team:
            threads.run(self.address, job.address, count, self.plan.target)
        self._idle.append(job)
        _arenas.append(arena)


class _Job:
    """One job array, 64-byte aligned; used by one call at a time."""

    __slots__ = ("_memory", "address", "slots")

    def __init__(self, template: ctypes.Array[Any]):
        size = ctypes.sizeof(template)
        self._memory = ctypes.create_string_buffer(size + 64)
        self.address = -(-ctypes.addressof(self._memory) // 64) * 64
        ctypes.memmove(self.address, template, size)
        self.slots = type(template).from_address(self.address)


class _Arena:
    """Workspace of one call at a time, whatever the layer: 64-byte aligned."""

    __slots__ = ("address", "memory", "size")

    def __init__(self, size: int):
        self.size = size
        self.memory = memory.empty((size + 64,), np.uint8)
        self.address = -(-self.memory.ctypes.data // 64) * 64


_arenas: list[_Arena] = []


# -- finding what is prepared ------------------------------------------------------------------------------------------

_prepared: OrderedDict[Any, Prepared | None] = OrderedDict()
_MOST_PREPARED = 256
forgetters: list[Callable[[], None]] = [_prepared.clear]
"""What empties each memory of prepared problems; front ends that keep some add theirs."""


def forget() -> None:
    """Let every prepared problem go: the next call of a layer asks for a plan again."""
    for empty in forgetters:
        empty()


def make_plan(spec: ConvSpec, batch: int, input_size: tuple[int, ...], dtype: str) -> plans.Plan:
    """The plan of a call (of its zero-padded core, where the padding mode is another)."""
    problem = Problem(spec, batch, tuple(input_size), spec.output_size(input_size), dtype)
    core, note = _core(problem)
    plan = _plan(core, threads.get_num_threads())
    return replace(plan, note=f"{plan.note}; {note}") if note else plan


def _plan(problem: Problem, count: int) -> plans.Plan:
    """The plan by what measuring has shown of such a layer, else by estimates."""
    return plans.make(problem, target(), count, advice.lookup(problem, target(), count), _precise)


def _plan_last(problem: Problem, count: int) -> plans.Plan | None:
    """The same for arrays that have their channels last; None where they are better reordered."""
    return plans.make_last(problem, target(), count, advice.lookup(problem, target(), count, True), _precise)


_precise = os.environ.get("UPCONV_PRECISE", "0") not in ("", "0")


def set_precise(on: bool) -> None:
    """Whether calls from now on use only kernels that round as the direct sum does, which leaves Winograd and Strassen out.

    >>> set_precise(True)
    >>> get_precise()
    True
    >>> set_precise(False)

    Off at first, unless the environment says UPCONV_PRECISE=1. Their error stays of the direct sum's order (docs/winograd.md and
    docs/strassen.md have figures), but it is relative to the largest numbers of a tile (Strassen: of two tiles of an image and
    two output channels), and a NaN or an infinity spreads over these.
    """
    global _precise
    _precise = bool(on)
    forget()


def get_precise() -> bool:
    """Whether only kernels that round as the direct sum does are used.

    >>> get_precise()
    False
    """
    return _precise


def _core(problem: Problem) -> tuple[Problem, str]:
    """The zero-padded problem that a kernel runs, and what is done around it."""
    spec = problem.spec
    if spec.padding_mode == "zeros":
        return problem, ""
    bare = replace(spec, padding=((0, 0),) * spec.rank, padding_mode="zeros")
    total = [lo + hi for lo, hi in spec.padding]
    if spec.transposed:
        full = tuple(o + t for o, t in zip(problem.output_size, total, strict=True))
        bare = replace(bare, activation=None)
        return replace(problem, spec=bare, output_size=full), f"its border is folded back by NumPy ({spec.padding_mode})"
    padded = tuple(n + t for n, t in zip(problem.input_size, total, strict=True))
    return replace(problem, spec=bare, input_size=padded), f"x is padded by NumPy first ({spec.padding_mode})"


def _prepare(spec: ConvSpec, shape: tuple[int, ...], dtype: str, last: bool = False) -> Prepared | None:
    """Prepared code for a zero-padded layer, or None where the reference runs it.

    With `last`, for arrays that have their channels last; None then where they are better reordered.
    """
    key = (spec, shape, dtype, threads.get_num_threads(), last)
    found = _prepared.get(key, key)
    if found is not key:
        return found  # type: ignore[return-value]
    problem = Problem(spec, shape[0], shape[2:], spec.output_size(shape[2:]), dtype)
    plan = _plan_last(problem, key[3]) if last else _plan(problem, key[3])
    jit.debug("spec", lambda: repr(problem))
    jit.debug("plan", lambda: str(plan))
    prepared = None if plan is None or plan.module is None else Prepared(plan)
    _prepared[key] = prepared
    while len(_prepared) > _MOST_PREPARED:
        _prepared.popitem(last=False)
    return prepared


# -- calls -------------------------------------------------------------------------------------------------------------


def forward(
    spec: ConvSpec,
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The layer's output for a batched x, into `out` where it is given."""
    if spec.padding_mode != "zeros" and any(lo or hi for lo, hi in spec.padding):
        y = _padded_mode(spec, x, weight, bias)
        if out is None:
            return y
        out[...] = y
        return out
    prepared = _prepare(spec, x.shape, x.dtype.name)
    size = spec.output_size(x.shape[2:]) if prepared is None else prepared.plan.problem.output_size
    if prepared is None:
        y = reference.forward(spec, x, weight, bias, size)
        if out is None:
            return y
        out[...] = y
        return out
    x, weight = execute_reorder.channels_first(x, target()), np.ascontiguousarray(weight)
    if out is None:
        out = memory.empty(prepared.plan.problem.output_shape, x.dtype)
    prepared(x, weight, None if bias is None else np.ascontiguousarray(bias), out)
    return out


class Ready:
    """A call whose arguments have been checked before: the same shapes need no second look."""

    __slots__ = ("_empty", "_last", "_prepared", "dtype", "shape")

    def __init__(self, prepared: Prepared, shape: tuple[int, ...]):
        self._last: Ready | bool | None = False
        self._prepared, self.shape = prepared, shape
        self.dtype = np.dtype(prepared.plan.problem.dtype)
        self._empty = memory.maker(shape, self.dtype)

    def __call__(
        self, x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None, out: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """The result, for C-contiguous arrays of the shapes and dtype that were checked."""
        y = self._empty() if out is None else out
        self._prepared(x, weight, bias, y)
        return y

    def at(
        self,
        x: int,
        weight: int,
        size: int,
        array: Callable[[], NDArray[Any]],
        bias: int | None,
        last: bool = False,
        version: Version | None = None,
    ) -> NDArray[Any]:
        """The same for memory at addresses: `size` is the weight's in bytes, `array` makes it an array if need be.

        Where the weight's memory holds its channels `last`, it has to be told apart from one that does not. With a `version`
        of it not all of its content is compared.
        """
        y = self._empty()
        prepared = self._prepared
        prepared.run(x, prepared.packed_at(weight, size, array, last, version), bias, y)
        return y

    @property
    def last(self) -> Ready | None:
        """What runs the same calls for an x, and a result (images, *spatial, channels), with their channels last.

        None where it is better reordered.
        """
        if self._last is False:
            problem = self._prepared.plan.problem
            prepared = _prepare(problem.spec, problem.input_shape, problem.dtype, last=True)
            n, c, *size = problem.output_shape
            self._last = None if prepared is None else Ready(prepared, (n, *size, c))
        assert not isinstance(self._last, bool)
        return self._last


def ready(spec: ConvSpec, batched_shape: tuple[int, ...], dtype: str, shape: tuple[int, ...]) -> Ready | None:
    """What runs calls of these shapes (the result's being `shape`), or None where more than a kernel is at work."""
    if spec.padding_mode != "zeros" and any(lo or hi for lo, hi in spec.padding):
        return None
    prepared = _prepare(spec, batched_shape, dtype)
    return None if prepared is None else Ready(prepared, shape)


def _padded_mode(spec: ConvSpec, x: NDArray[Any], weight: NDArray[Any], bias: NDArray[Any] | None) -> NDArray[Any]:
    """Padding modes other than zeros: the padding, or its adjoint, is done by NumPy round the zero-padded core."""
    problem = Problem(spec, x.shape[0], x.shape[2:], spec.output_size(x.shape[2:]), x.dtype.name)
    core = _core(problem)[0].spec
    if not spec.transposed:
        return forward(core, reference.pad(x, spec.padding, spec.padding_mode), weight, bias)
    y = reference.unpad_adjoint(forward(core, x, weight, None), spec.padding, spec.padding_mode)
    if bias is not None:
        y = y + bias.reshape(-1, *(1,) * spec.rank)
    return np.ascontiguousarray(reference.activate(y, spec.activation))


def input_gradient(spec: ConvSpec, grad_output: NDArray[Any], weight: NDArray[Any], input_size: Sequence[int]) -> NDArray[Any]:
    """The gradient for a batched x of spatial size `input_size`; grad_output is taken before the activation."""
    other = dual(spec, input_size)
    grad_x = forward(other, grad_output, weight, None)
    if grad_x.shape[2:] == tuple(input_size):
        return grad_x
    inside: Any = (..., *(slice(0, n) for n in input_size))
    return np.ascontiguousarray(grad_x[inside])


def weight_gradient(spec: ConvSpec, x: NDArray[Any], grad_output: NDArray[Any]) -> NDArray[Any]:
    """The gradient for the weight, in the weight's shape."""
    return execute_weight.gradient(spec, x, grad_output, target())


__all__ = ["forward", "input_gradient", "make_plan", "packed_weight", "target", "weight_gradient"]
