"""Binds a plan to memory and threads.

A call finds its `Prepared` problem (plan, loaded code, a job template) by layer and sizes, packs the weight unless it is
packed already, fills the template's addresses in, and runs it.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv import execute_weight
from upconv import planner as plans
from upconv.codegen import jit, memory, threads
from upconv.codegen.target import Target, host
from upconv.kernels import job as jobs
from upconv.kernels import reference
from upconv.kernels.fingerprint import fingerprint
from upconv.shapes.dual import dual
from upconv.spec import ConvSpec, Problem

PACKED_BYTES = 1 << 30
"""Packed weights kept at most, the least recently used given up first."""


@lru_cache(maxsize=1)
def target() -> Target | None:
    """The machine to write code for, or None where none can be written."""
    return host() if jit.AVAILABLE else None


class Prepared:
    """A problem ready to run: its plan, its code, and the job's numbers."""

    __slots__ = ("_idle", "_tables", "_template", "address", "code_key", "ones", "packing", "plan", "workspace")

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
        template[jobs.TASKS] = bound.tasks
        self._tables = (bound.tables, np.zeros(problem.spec.out_channels, problem.dtype))
        self._template = template
        self._idle: list[_Job] = []
        self.workspace = how.workspace_bytes * plan.threads
        self.packing = (problem.spec, problem.dtype, kernel.NAME, kernel.packing(problem, how))
        self.ones = tuple(slots.index[name] for name in ("x", "weight", "bias", "y"))

    def run(self, x: int, weight: int, bias: int | None, y: int) -> None:
        """Runs the job on the arrays at these addresses."""
        try:
            job = self._idle.pop()
        except IndexError:
            job = _Job(self._template, self.workspace)
        slots, ones = job.slots, self.ones
        slots[jobs.NEXT] = slots[jobs.TICKET] = 0
        slots[ones[0]], slots[ones[1]], slots[ones[3]] = x, weight, y
        slots[ones[2]] = self._tables[1].ctypes.data if bias is None else bias
        threads.run(self.address, job.address, self.plan.threads, self.plan.target)
        self._idle.append(job)


class _Job:
    """One job array, 64-byte aligned, with its workspace; used by one call at a time."""

    __slots__ = ("_memory", "address", "slots", "workspace")

    def __init__(self, template: ctypes.Array[Any], workspace: int):
        size = ctypes.sizeof(template)
        self._memory = ctypes.create_string_buffer(size + 64)
        self.address = -(-ctypes.addressof(self._memory) // 64) * 64
        ctypes.memmove(self.address, template, size)
        self.slots = type(template).from_address(self.address)
        self.workspace = memory.empty((workspace + 64,), np.uint8)
        self.slots[jobs.WORKSPACE] = -(-self.workspace.ctypes.data // 64) * 64


# -- finding what is prepared ------------------------------------------------------------------------------------------

_prepared: OrderedDict[Any, Prepared | None] = OrderedDict()
_MOST_PREPARED = 256


def make_plan(spec: ConvSpec, batch: int, input_size: tuple[int, ...], dtype: str) -> plans.Plan:
    """The plan of a call (of its zero-padded core, where the padding mode is another)."""
    problem = Problem(spec, batch, tuple(input_size), spec.output_size(input_size), dtype)
    core, note = _core(problem)
    plan = plans.make(core, target(), threads.get_num_threads())
    return replace(plan, note=f"{plan.note}; {note}") if note else plan


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


def _prepare(spec: ConvSpec, shape: tuple[int, ...], dtype: str) -> Prepared | None:
    """Prepared code for a zero-padded layer, or None where the reference runs it."""
    key = (spec, shape, dtype, threads.get_num_threads())
    found = _prepared.get(key, key)
    if found is not key:
        return found  # type: ignore[return-value]
    problem = Problem(spec, shape[0], shape[2:], spec.output_size(shape[2:]), dtype)
    plan = plans.make(problem, target(), key[3])
    prepared = None if plan.module is None else Prepared(plan)
    _prepared[key] = prepared
    while len(_prepared) > _MOST_PREPARED:
        _prepared.popitem(last=False)
    return prepared


# -- weights -----------------------------------------------------------------------------------------------------------

_packed: OrderedDict[Any, tuple[Any, NDArray[Any]]] = OrderedDict()
_packed_lock = threading.Lock()


def _after_fork() -> None:
    global _packed_lock
    _packed_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def packed_weight(prepared: Prepared, weight: NDArray[Any]) -> NDArray[Any]:
    """The weight as the prepared kernel reads it; packed again only where it has changed.

    A read-only array is known by identity. A writable one may change without notice, so its content is fingerprinted.
    """
    key = (weight.ctypes.data, weight.shape, prepared.packing)
    kept = _packed.get(key)
    state: Any
    if weight.flags.writeable:
        state = fingerprint(weight, prepared.plan.target)
        if kept is not None and isinstance(kept[0], int) and kept[0] == state:
            return kept[1]
    else:
        if kept is not None and isinstance(kept[0], weakref.ref) and kept[0]() is weight:
            return kept[1]
        state = weakref.ref(weight)
    plan = prepared.plan
    packed = plan.module.pack_weight(plan.problem, plan.blocking, weight)
    with _packed_lock:
        _packed[key] = (state, packed)
        _packed.move_to_end(key)
        while sum(p.nbytes for _, p in _packed.values()) > PACKED_BYTES and len(_packed) > 1:
            _packed.popitem(last=False)
    return packed


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
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    if out is None:
        out = memory.empty(prepared.plan.problem.output_shape, x.dtype)
    packed = packed_weight(prepared, weight)
    kept = None if bias is None else np.ascontiguousarray(bias)
    prepared.run(x.ctypes.data, packed.ctypes.data, None if kept is None else kept.ctypes.data, out.ctypes.data)
    return out


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
