"""Packed weights: a parameter in the order in which a kernel reads it, made once and kept while the parameter is unchanged."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from upconv import planner as plans
from upconv.codegen import jit, memory, threads
from upconv.kernels import job as jobs
from upconv.kernels import weights
from upconv.kernels.fingerprint import fingerprint

PACKED_BYTES = 1 << 30
"""Packed weights kept at most, the least recently used given up first."""


class Prepared(Protocol):
    """What packing needs to know of a problem that is ready to run."""

    plan: plans.Plan
    packing: int

    @property
    def packer(self) -> Packer:
        """What packs its weights."""


_packed: OrderedDict[Any, tuple[Any, NDArray[Any]]] = OrderedDict()
_packed_lock = threading.Lock()


def _after_fork() -> None:
    global _packed_lock
    _packed_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def frozen(array: NDArray[Any]) -> bool:
    """Whether nobody can write to the array, nor to an array that it is a view of."""
    while not array.flags.writeable:
        base = array.base
        if not isinstance(base, np.ndarray):
            return True
        array = base
    return False


def packed_weight(prepared: Prepared, weight: NDArray[Any]) -> NDArray[Any]:
    """The weight as the prepared kernel reads it; packed again only where it has changed.

    A read-only array (no view of a writable one) is known by identity, so do not unlock and change it. A writable one may
    change without notice, so its content is compared.
    """
    if not frozen(weight):
        return packed_content(prepared, memory.address(weight), weight.nbytes, lambda: weight)
    key = (memory.address(weight), weight.shape, prepared.packing)
    kept = _packed.get(key)
    if kept is not None and isinstance(kept[0], weakref.ref) and kept[0]() is weight:
        return kept[1]
    return _pack(prepared, key, weakref.ref(weight), weight)


def packed_content(
    prepared: Prepared, address: int, size: int, weight: Callable[[], NDArray[Any]], last: bool = False
) -> NDArray[Any]:
    """The packed form of the weight that now stands at an address; `weight` makes the array where it is needed."""
    key = (address, size, prepared.packing, last)
    state = fingerprint(address, size, prepared.plan.target)
    kept = _packed.get(key)
    if kept is not None and kept[0] == state:
        return kept[1]
    return _pack(prepared, key, state, weight())


def _pack(prepared: Prepared, key: Any, state: Any, weight: NDArray[Any]) -> NDArray[Any]:
    packed = prepared.packer(weight)
    with _packed_lock:
        _packed[key] = (state, packed)
        _packed.move_to_end(key)
        while sum(p.nbytes for _, p in _packed.values()) > PACKED_BYTES and len(_packed) > 1:
            _packed.popitem(last=False)
    return packed


class Packer:
    """A prepared problem's weight order, and the code that makes it."""

    def __init__(self, plan: plans.Plan):
        self._layout = plan.module.weight_layout(plan.problem, plan.blocking)
        self._dtype, self._target = np.dtype(plan.problem.dtype), plan.target
        self._threads = plan.threads if self._layout.size > 1 << 15 else 1
        transform = self._layout.transform
        name = f"weights_f{8 * self._dtype.itemsize}_{transform.rows}_{plan.target.name}"
        parameters = weights.code_parameters(transform)
        self._address = jit.get(name, parameters, ("entry",), lambda: weights.emit(transform), plan.target)["entry"]
        self._bound = self._layout.bind()

    def __call__(self, weight: NDArray[Any]) -> NDArray[Any]:
        """The packed weight, 64-byte aligned, in memory of its own."""
        packed = memory.empty((self._layout.size,), self._dtype)
        arrays = {"x": weight, "y": packed, **self._bound.tables}
        numbers = {**self._bound.slots, **{name: memory.address(array) for name, array in arrays.items()}}
        job = jobs.filled(weights.SLOTS, numbers, self._bound.tasks)
        threads.run(self._address, job.ctypes.data, self._threads, self._target)
        return packed
