"""Binds the kernels of the weight and bias gradients to memory and threads: the backward counterpart of `execute`."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen import jit, memory, threads
from upconv.codegen.target import Target
from upconv.kernels import bias_grad, reference, register_tile, weight_grad
from upconv.kernels import job as jobs
from upconv.shapes.dual import dual
from upconv.spec import ConvSpec, Problem

_SMALL = 4_000_000
"""Flops below which one thread is as fast as several."""
_PLACES = tuple(weight_grad.SLOTS.index[name] for name in ("x", "g", "w", "counters", "workspace", "partial"))


class _Prepared:
    """A problem's code and the numbers of its job."""

    def __init__(self, problem: Problem, target: Target, count: int):
        how = weight_grad.blocking(problem, target, count)
        name = weight_grad.code_name(problem, how, target)
        code = jit.get(name, weight_grad.code_parameters(how), ("entry",), lambda: weight_grad.emit(how), target)
        self.address, self.how, self.target = code["entry"], how, target
        bound = weight_grad.bind(problem, how)
        self.offsets = bound.tables["offsets"]
        self.threads = min(count, bound.tasks)
        self.numbers = np.zeros(_round_up(len(weight_grad.SLOTS.names) * 8), np.uint8).view(np.int64)
        for slot, value in {**bound.slots, "offsets": self.offsets.ctypes.data}.items():
            self.numbers[weight_grad.SLOTS.index[slot]] = value
        self.numbers[jobs.TASKS], self.numbers[jobs.SEATS] = bound.tasks, self.threads
        self.address_of_numbers = self.numbers.ctypes.data
        self.shape = problem.spec.weight_shape
        sizes = (
            self.numbers.nbytes,
            _round_up(bound.tables["counters"].nbytes),
            self.how.workspace_bytes * self.threads,
            self.how.partial_bytes,
        )
        self.sizes = (*sizes, sum(sizes) + 64)

    def run(self, x: NDArray[Any], g: NDArray[Any]) -> NDArray[Any]:
        """The gradient. Every call has a job, counters and workspace of its own, one after another."""
        x, g, out = np.ascontiguousarray(x), np.ascontiguousarray(g), memory.empty(self.shape, x.dtype)
        room = memory.empty((self.sizes[4],), np.uint8)
        job = _round_up(room.ctypes.data)
        counters = job + self.sizes[0]
        workspace = counters + self.sizes[1]
        ctypes.memmove(job, self.address_of_numbers, self.sizes[0])
        ctypes.memset(counters, 0, self.sizes[1])
        slots = (ctypes.c_int64 * len(self.numbers)).from_address(job)
        addresses = (x.ctypes.data, g.ctypes.data, out.ctypes.data, counters, workspace, workspace + self.sizes[2])
        for place, address in zip(_PLACES, addresses, strict=True):
            slots[place] = address
        threads.run(self.address, job, self.threads, self.target)
        return out


def _round_up(size: int) -> int:
    return -(-size // 64) * 64


@dataclass(frozen=True, slots=True)
class _Route:
    """What is done round the kernel: the convolution whose weight it is, whose x is padded first, or which is mirrored."""

    conv: ConvSpec
    pad_first: bool
    mirrored: bool
    prepared: _Prepared


@lru_cache(maxsize=256)
def _route(spec: ConvSpec, x_shape: tuple[int, ...], grad_shape: tuple[int, ...], dtype: str, count: int, target: Target) -> _Route:
    if spec.transposed:  # the dual convolution has this weight, reads grad_output and is answered by x
        spec, x_shape, grad_shape = dual(spec, x_shape[2:]), grad_shape, x_shape
    conv = core = replace(spec, activation=None)
    size = x_shape[2:]
    pad_first = spec.padding_mode != "zeros"
    if pad_first:
        core = replace(core, padding=((0, 0),) * spec.rank, padding_mode="zeros")
        size = tuple(n + lo + hi for n, (lo, hi) in zip(size, spec.padding, strict=True))
    problem = Problem(core, x_shape[0], size, grad_shape[2:], dtype)
    mirrored = _better_mirrored(core, problem.itemsize, target)
    if mirrored:
        problem = Problem(_mirror(core), x_shape[0], grad_shape[2:], size, dtype)
    return _Route(conv, pad_first, mirrored, _Prepared(problem, target, 1 if problem.flops < _SMALL else count))


def gradient(spec: ConvSpec, x: NDArray[Any], grad_output: NDArray[Any], target: Target | None) -> NDArray[Any]:
    """The gradient for the weight, in the weight's shape; the reference computes it where no code can be made."""
    if target is None or grad_output.size == 0 or x.size == 0:
        return reference.weight_gradient(spec, x, grad_output)
    route = _route(spec, x.shape, grad_output.shape, x.dtype.name, threads.get_num_threads(), target)
    if spec.transposed:
        x, grad_output = grad_output, x
    if route.pad_first:
        x = reference.pad(x, route.conv.padding, route.conv.padding_mode)
    if route.mirrored:
        return _unmirrored(route.prepared.run(grad_output, x), route.conv)
    return route.prepared.run(x, grad_output)


def _mirror(spec: ConvSpec) -> ConvSpec:
    """With stride 1, x[o + d*k - p] met by grad[o] is grad[i + d*(K-1-k) - p'] met by x[i], where p' = d*(K-1) - p.

    So the mirrored kernel's gradient is that of this layer, which reads grad_output and is answered by x.
    """
    padding = zip(spec.dilation, spec.kernel_size, spec.padding, strict=True)
    return replace(
        spec,
        in_channels=spec.out_channels,
        out_channels=spec.in_channels,
        padding=tuple((d * (k - 1) - lo, d * (k - 1) - hi) for d, k, (lo, hi) in padding),
    )


def _better_mirrored(spec: ConvSpec, itemsize: int, target: Target) -> bool:
    """Whether the input's channels fill the lanes better than the output's, and the two may change places."""
    lanes = target.lanes(itemsize)
    few, many = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    fits = zip(spec.dilation, spec.kernel_size, spec.padding, strict=True)
    allowed = set(spec.stride) == {1} and all(max(edges) <= d * (k - 1) for d, k, edges in fits)
    return allowed and 1.5 * few / -(-few // lanes) < many / -(-many // lanes)


def _unmirrored(found: NDArray[Any], spec: ConvSpec) -> NDArray[Any]:
    """The mirrored layer's gradient, (in_channels, out_channels/groups, *kernel) reversed, as the layer's own."""
    g = spec.groups
    split = found.reshape(g, spec.in_channels // g, spec.out_channels // g, *spec.kernel_size)
    own = np.flip(split.swapaxes(1, 2), tuple(range(3, 3 + spec.rank)))
    return np.ascontiguousarray(own).reshape(spec.weight_shape)


def bias_gradient(grad_output: NDArray[Any], target: Target | None) -> NDArray[Any]:
    """The sum of a batched grad_output over everything but the channels."""
    n, m = grad_output.shape[:2]
    if target is None or grad_output.size == 0:
        return grad_output.sum(axis=(0, *range(2, grad_output.ndim)))  # type: ignore[no-any-return]
    element = register_tile.ELEMENTS[grad_output.dtype.name]
    name = f"{bias_grad.NAME}_f{grad_output.itemsize * 8}_{target.name}"
    code = jit.get(name, element, ("entry",), lambda: bias_grad.emit(element, target), target)
    g, out = np.ascontiguousarray(grad_output), np.empty(m, grad_output.dtype)
    size = g.size // (n * m)
    numbers = {"g": g.ctypes.data, "out": out.ctypes.data, "images": n, "image": m * size, "channel": size}
    count = threads.get_num_threads() if g.size > _SMALL // 8 else 1
    job = jobs.filled(bias_grad.SLOTS, numbers, m, count)
    threads.run(code["entry"], job.ctypes.data, count, target)
    return out
