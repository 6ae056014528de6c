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
from upconv.codegen.target import Target
from upconv.kernels import job as jobs
from upconv.kernels import weights
from upconv.kernels.fingerprint import Samples, fingerprint

PACKED_BYTES = 1 << 30
"""Packed weights kept at most, the least recently used given up first."""


class Prepared(Protocol):
    """What packing needs to know of a problem that is ready to run."""

    plan: plans.Plan
    packing: int

    @property
    def packer(self) -> Packer:
        """What packs its weights."""


Version = tuple[int, int, bool]
"""The number of a parameter, its changes, as far as whoever counts them knows, and whether nobody else can change it."""


class _Kept:
    """A packed weight, and what tells that it is still its parameter's: a weak reference, or a fingerprint of the content.

    While its parameter's version stays the same only a sample of the content is compared, another one at each call, for what
    the version may have missed; nothing where it misses nothing.
    """

    __slots__ = ("_samples", "_version", "packed", "state")

    def __init__(self, state: Any, packed: NDArray[Any]):
        self.state, self.packed = state, packed
        self._version: Version | None = None
        self._samples: Samples | None = None

    def compared(self, address: int, size: int, version: Version, target: Target) -> None:
        """The whole content has just been found the same, at this version."""
        self._samples = None if version[2] else Samples(address, size, target)
        self._version = version

    def unchanged(self, version: Version) -> bool:
        """Whether a second look can be spared."""
        return version == self._version and (self._samples is None or self._samples.unchanged())


_packed: OrderedDict[Any, _Kept] = OrderedDict()
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
    if kept is not None and isinstance(kept.state, weakref.ref) and kept.state() is weight:
        return kept.packed
    return _pack(prepared, key, weakref.ref(weight), weight)


def packed_content(
    prepared: Prepared,
    address: int,
    size: int,
    weight: Callable[[], NDArray[Any]],
    last: bool = False,
    version: Version | None = None,
) -> NDArray[Any]:
    """The packed form of the weight that now stands at an address; `weight` makes the array where it is needed.

    While its `version` stays the same a look at some of it is enough.
    """
    key, target = (address, size, prepared.packing, last), prepared.plan.target
    kept = _packed.get(key)
    if kept is not None and version is not None and kept.unchanged(version):
        return kept.packed
    state = fingerprint(address, size, target)
    if kept is None or kept.state != state:
        return _pack(prepared, key, state, weight())
    if version is not None:
        kept.compared(address, size, version, target)
    return kept.packed


def _pack(prepared: Prepared, key: Any, state: Any, weight: NDArray[Any]) -> NDArray[Any]:
    packed = prepared.packer(weight)
    with _packed_lock:
        _packed[key] = _Kept(state, packed)
        _packed.move_to_end(key)
        while sum(kept.packed.nbytes for kept in _packed.values()) > PACKED_BYTES and len(_packed) > 1:
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
        job = jobs.filled(weights.SLOTS, numbers, self._bound.tasks, self._threads)
        threads.run(self._address, job.ctypes.data, self._threads, self._target)
        return packed
