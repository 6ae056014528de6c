"""Binds the kernels of the weight and bias gradients to memory and threads: the backward counterpart of `execute`."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen import jit, memory, threads
from upconv.codegen.target import Target
from upconv.kernels import bias_grad, reference, weight_grad
from upconv.kernels import job as jobs
from upconv.shapes.dual import dual
from upconv.spec import ConvSpec, Problem

_SMALL = 4_000_000
"""Flops below which one thread is as fast as several."""


class _Prepared:
    """A problem's code and the numbers of its job."""

    def __init__(self, problem: Problem, target: Target, count: int):
        how = weight_grad.blocking(problem, target, count)
        name = weight_grad.code_name(problem, how, target)
        code = jit.get(name, weight_grad.code_parameters(how), ("entry",), lambda: weight_grad.emit(how), target)
        self.address, self.how, self.target = code["entry"], how, target
        bound = weight_grad.bind(problem, how)
        self.offsets, self.counters = bound.tables["offsets"], len(bound.tables["counters"])
        self.threads = min(count, bound.tasks)
        self.numbers = np.zeros(_round_up(len(weight_grad.SLOTS.names) * 8), np.uint8).view(np.int64)
        for slot, value in {**bound.slots, "offsets": self.offsets.ctypes.data}.items():
            self.numbers[weight_grad.SLOTS.index[slot]] = value
        self.numbers[jobs.TASKS] = bound.tasks

    def run(self, x: NDArray[Any], g: NDArray[Any], out: NDArray[Any]) -> None:
        """The gradient into `out`. Every call has a job, counters and workspace of its own, one after another."""
        sizes = [self.numbers.nbytes, _round_up(self.counters * 8), self.how.workspace_bytes * self.threads, self.how.partial_bytes]
        room = memory.empty((sum(sizes) + 64,), np.uint8)
        job = _round_up(room.ctypes.data)
        ctypes.memmove(job, self.numbers.ctypes.data, sizes[0])
        ctypes.memset(job + sizes[0], 0, sizes[1])
        slots = (ctypes.c_int64 * len(self.numbers)).from_address(job)
        workspace = job + sizes[0] + sizes[1]
        addresses = {
            "x": x.ctypes.data,
            "g": g.ctypes.data,
            "w": out.ctypes.data,
            "counters": job + sizes[0],
            "workspace": workspace,
            "partial": workspace + sizes[2],
        }
        for name, address in addresses.items():
            slots[weight_grad.SLOTS.index[name]] = address
        threads.run(self.address, job, self.threads, self.target)


def _round_up(size: int) -> int:
    return -(-size // 64) * 64


@lru_cache(maxsize=256)
def _prepare(problem: Problem, target: Target, count: int) -> _Prepared:
    return _Prepared(problem, target, count)


def gradient(spec: ConvSpec, x: NDArray[Any], grad_output: NDArray[Any], target: Target | None) -> NDArray[Any]:
    """The gradient for the weight, in the weight's shape; the reference computes it where no code can be made."""
    if spec.transposed:  # the dual convolution has this weight, reads grad_output and is answered by x
        return gradient(dual(spec, x.shape[2:]), grad_output, x, target)
    if target is None or grad_output.size == 0 or x.size == 0:
        return reference.weight_gradient(spec, x, grad_output)
    spec = replace(spec, activation=None)
    if spec.padding_mode != "zeros":
        x = reference.pad(x, spec.padding, spec.padding_mode)
        spec = replace(spec, padding=((0, 0),) * spec.rank, padding_mode="zeros")
    if _better_mirrored(spec, x.dtype.itemsize, target):
        mirror = replace(
            spec,
            in_channels=spec.out_channels,
            out_channels=spec.in_channels,
            padding=tuple(
                (d * (k - 1) - lo, d * (k - 1) - hi)
                for d, k, (lo, hi) in zip(spec.dilation, spec.kernel_size, spec.padding, strict=True)
            ),
        )
        return _mirrored(gradient(mirror, grad_output, x, target), spec)
    problem = Problem(spec, x.shape[0], x.shape[2:], grad_output.shape[2:], x.dtype.name)
    count = 1 if problem.flops < _SMALL else threads.get_num_threads()
    x, grad_output = np.ascontiguousarray(x), np.ascontiguousarray(grad_output)
    out = memory.empty(spec.weight_shape, x.dtype)
    _prepare(problem, target, count).run(x, grad_output, out)
    return out


def _better_mirrored(spec: ConvSpec, itemsize: int, target: Target) -> bool:
    """Whether the input's channels fill the lanes better than the output's, and the two may change places.

    With stride 1, x[o + d*k - p] met by grad[o] is grad[i + d*(K-1-k) - p'] met by x[i], p' = d*(K-1) - p: the mirrored
    kernel's gradient, of a layer that reads grad_output and is answered by x.
    """
    lanes = target.lanes(itemsize)
    few, many = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    whole = all(
        lo <= d * (k - 1) and hi <= d * (k - 1)
        for d, k, (lo, hi) in zip(spec.dilation, spec.kernel_size, spec.padding, strict=True)
    )
    return whole and set(spec.stride) == {1} and few / (-(-few // lanes)) * 1.5 < many / (-(-many // lanes))


def _mirrored(found: NDArray[Any], spec: ConvSpec) -> NDArray[Any]:
    """The mirrored layer's gradient, (in_channels, out_channels/groups, *kernel) reversed, as the layer's own."""
    g, kernel = spec.groups, spec.kernel_size
    split = found.reshape(g, spec.in_channels // g, spec.out_channels // g, *kernel)
    own = np.flip(split.swapaxes(1, 2), tuple(range(3, 3 + spec.rank)))
    return np.ascontiguousarray(own).reshape(spec.weight_shape)


def bias_gradient(grad_output: NDArray[Any], target: Target | None) -> NDArray[Any]:
    """The sum of a batched grad_output over everything but the channels."""
    n, m = grad_output.shape[:2]
    if target is None or grad_output.size == 0:
        return grad_output.sum(axis=(0, *range(2, grad_output.ndim)))  # type: ignore[no-any-return]
    element = weight_grad.ELEMENTS[grad_output.dtype.name]
    name = f"{bias_grad.NAME}_f{grad_output.itemsize * 8}_{target.name}"
    code = jit.get(name, element, ("entry",), lambda: bias_grad.emit(element, target), target)
    g, out = np.ascontiguousarray(grad_output), np.empty(m, grad_output.dtype)
    size = g.size // (n * m)
    job = _job({"g": g.ctypes.data, "out": out.ctypes.data, "images": n, "image": m * size, "channel": size})
    job[jobs.TASKS] = m
    threads.run(code["entry"], job.ctypes.data, threads.get_num_threads() if g.size > _SMALL // 8 else 1, target)
    return out


def _job(numbers: dict[str, int]) -> NDArray[np.int64]:
    """A job of the bias gradient, 64-byte aligned."""
    slots = bias_grad.SLOTS
    room = np.zeros(_round_up(len(slots.names) * 8) + 64, np.uint8)
    job = room[-room.ctypes.data % 64 :][: len(slots.names) * 8].view(np.int64)
    for name, number in numbers.items():
        job[slots.index[name]] = number
    return job
