"""What a call costs besides its work: the time from the Python call to the kernel, for a layer planned before.

The work itself is measured by calling the emitted code with a job that has its task, and again with one whose tasks are all
done: the difference is the kernel's, the rest of a call is overhead (ours and Python's). In a row of calls all that the interpreter
looks at stays near; in a model the layers before have filled the caches, and it is fetched again. So whole calls are timed after
other data have passed as well.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv import execute, functional, nn
from upconv.codegen import threads
from upconv.kernels import job as jobs
from upconv.spec import ConvSpec, SpecError

SHAPE = (1, 8, 16)
LAYER = dict(transposed=True, in_channels=8, out_channels=8, kernel_size=4, stride=2, padding=1, rank=1)
BATCHES, CALLS = 30, 300
OTHER, SINGLE = 16 << 20, 100
"""Bytes of other data that pass before a single call, more than the caches of a core hold, and how many such calls are timed."""
OURS, THEIRS = "upconv.torch.ConvTranspose1d", "torch.nn.ConvTranspose1d"


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds of a call of the tiny layer by each door, and of the kernel in it."""

    layer: str
    kernel: float
    calls: dict[str, float]
    others: dict[str, float]
    """Rivals' whole calls of the same layer."""
    afterwards: dict[str, float]
    """Whole calls of all doors, each after other data have passed through the caches."""

    @property
    def doors(self) -> dict[str, float]:
        """Each door's overhead."""
        return {name: seconds - self.kernel for name, seconds in self.calls.items()}

    def __str__(self) -> str:
        lines = [f"{self.layer} on {SHAPE}; the kernel itself takes {self.kernel * 1e6:.2f} us"]
        for name, seconds in self.doors.items():
            lines.append(f"  {name:44} {seconds * 1e6:6.2f} us from the call to the kernel")
        for name, seconds in self.others.items():
            lines.append(f"  {name:44} {seconds * 1e6:6.2f} us the whole call")
        lines.append(f"and the whole call after {OTHER >> 20} MB of other data have passed, as between the layers of a model")
        for name, seconds in self.afterwards.items():
            lines.append(f"  {name:44} {seconds * 1e6:6.2f} us")
        return "\n".join(lines)


def _each(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of one call of each: medians of batches, in turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(BATCHES):
        for name, call in calls.items():
            call()
            start = perf_counter()
            for _ in range(CALLS):
                call()
            found[name].append((perf_counter() - start) / CALLS)
    return {name: median(values) for name, values in found.items()}


def _afterwards(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of one call of each after other data have passed: medians, in turn."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    other = np.zeros(OTHER // 4, np.float32)
    for _ in range(SINGLE):
        for name, call in calls.items():
            other += 1
            start = perf_counter()
            call()
            found[name].append(perf_counter() - start)
    return {name: median(values) for name, values in found.items()}


def _native(spec: ConvSpec) -> tuple[Callable[[], None], Callable[[], None]]:
    """The emitted code with its work to do, and with none left. Call it after the layer has run once."""
    prepared = execute._prepare(spec, SHAPE, "float32")
    if prepared is None or prepared.plan.threads != 1:
        raise SpecError("the layer that overhead is measured on has no kernel of one thread on this machine")
    job, entry = prepared._idle[-1], threads.entry(prepared.address)
    slots, address, tasks = job.slots, job.address, job.slots[jobs.TASKS]

    def work() -> None:
        slots[jobs.NEXT] = 0
        slots[jobs.TAKEN] = 0
        entry(address)

    def nothing() -> None:
        slots[jobs.NEXT] = tasks
        slots[jobs.TAKEN] = 0
        entry(address)

    return work, nothing


def measure() -> Overhead:
    """Time the doors that are open here: NumPy's, and PyTorch's (inside `torch.inference_mode()`) where it is installed."""
    spec, rng = ConvSpec.make(**LAYER), np.random.default_rng(0)  # type: ignore[arg-type]
    x, weight, bias = (rng.standard_normal(s, np.float32) for s in (SHAPE, spec.weight_shape, (spec.out_channels,)))
    weight.flags.writeable = False
    layer = nn.ConvTranspose1d(8, 8, 4, stride=2, padding=1)
    layer.weight, layer.bias = weight, bias
    calls: dict[str, Callable[[], Any]] = {
        "upconv.conv_transpose(x, w, b, ...)": lambda: functional.conv_transpose(x, weight, bias, stride=2, padding=1),
        "upconv.nn.ConvTranspose1d": lambda: layer(x),
    }
    inside, tensors = _tensors(x, layer.state_dict())
    with inside:
        kept = [call() for call in (calls | tensors).values()]  # the job's arrays must stay while its code runs alone
        times = _each(dict(zip(("work", "nothing"), _native(spec), strict=True)))
        del kept
        seconds, afterwards = _each(calls | tensors), _afterwards(calls | tensors)
    others = {THEIRS: seconds.pop(THEIRS)} if THEIRS in seconds else {}
    return Overhead(str(spec), times["work"] - times["nothing"], seconds, others, afterwards)


def _tensors(x: NDArray[Any], state: dict[str, NDArray[Any]]) -> tuple[Any, dict[str, Callable[[], Any]]]:
    """torch's inference mode, and the layer called with tensors; nothing where torch is not installed."""
    try:
        import torch

        import upconv.torch
    except ImportError:
        return nullcontext(), {}
    t = torch.from_numpy(x)
    layers = {OURS: upconv.torch.ConvTranspose1d(8, 8, 4, 2, 1), THEIRS: torch.nn.ConvTranspose1d(8, 8, 4, 2, 1)}
    for layer in layers.values():
        layer.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()})
    return torch.inference_mode(), {name: partial(layer, t) for name, layer in layers.items()}
