"""A 64-bit fingerprint of an array's bytes, at memory speed: whether a packed weight is still that of its parameter.

Each 64-bit lane keeps a state that is rotated and added to the data, so that any change of one element changes its lane's
state for certain, and other changes go unseen with a chance of about 2**-64. It guards against mistakes, not attackers.

Where there is word already that nothing has changed, a sample is enough of a second look: one line of every page, another one
each time.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

from upconv.codegen import jit, threads
from upconv.codegen.ir import Carry, Function, Value, module, vector
from upconv.codegen.target import LINE, Target
from upconv.kernels import job as jobs

SLOTS = jobs.Slots(("data", "blocks", "out"))
_Job = ctypes.c_int64 * len(SLOTS.names)
_STATES = 8
_PART = 1 << 19
"""Bytes that a task digests: the same parts on any number of threads."""


def _start(f: Function, type_: str, count: int) -> Carry:
    return Carry([Value(f, f"splat (i64 {0x9E3779B97F4A7C15 - (1 << 64) + i})", type_) for i in range(count)])


def _digested(f: Function, state: Value, address: Value) -> Value:
    """A state that has seen the vector at an address."""
    turned = f.intrinsic("llvm.fshl", state.type, [state, state, f.splat_int(23, state.type)])
    return f._op("add", turned, f.load(state.type, address))


def _emit(lanes: int) -> str:
    """The module's IR text; task i of `entry(job)` digests part i: `out` gets its states. Only whole blocks are looked at."""
    type_, step = vector("i64", lanes), _STATES * lanes

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        del workspace
        data, out = (SLOTS.pointer(f, job, name, "i64") for name in ("data", "out"))
        part = _PART // (step * 8)
        first = number * part
        states = _start(f, type_, _STATES)
        with f.loop(first, f.minimum(first + part, SLOTS.read(f, job, "blocks")), name="block", carry=states) as i:
            states.next = [_digested(f, state, data[i * step + s * lanes]) for s, state in enumerate(states.values)]
        for s, state in enumerate(states.results):
            f.store(state, out[number * step + s * lanes])

    return module([jobs.emit_entry("entry", SLOTS, task)])


@lru_cache(maxsize=4)
def _function(target: Target) -> tuple[int, Any, int]:
    """The entry's address, the entry as a function, and the bytes of a block."""
    lanes = target.lanes(8)
    code = jit.get("fingerprint", f"{lanes}", ("entry",), lambda: _emit(lanes), target)
    return code["entry"], threads.entry(code["entry"]), _STATES * lanes * 8


SMALL = 16 << 10
"""Up to so many bytes the content itself is cheaper to keep and compare than to digest."""


def fingerprint(address: int, size: int, target: Target) -> int | bytes:
    """Of the `size` bytes at an address."""
    if size <= SMALL:
        return ctypes.string_at(address, size)
    entry, alone, block = _function(target)
    parts, whole = -(-size // _PART), size // block
    out = (ctypes.c_int64 * (parts * block // 8))()
    if parts == 1:  # without a job's alignment, that is dear beside so little
        small = _Job(0, 1, 0, 1, 0, 0, address, whole, ctypes.addressof(out))
        alone(ctypes.addressof(small))
    else:
        count = threads.get_num_threads()
        job = jobs.filled(SLOTS, {"data": address, "blocks": whole, "out": ctypes.addressof(out)}, parts, count)
        threads.run(entry, job.ctypes.data, count, target)
    rest = ctypes.string_at(address + whole * block, size - whole * block)
    return hash((bytes(out), rest))


SAMPLES = 64
_PAGE, _SOON = SAMPLES * LINE, 24
"""Bytes of which a sample takes a line; and so many pages ahead it is asked for, as lines out of order come slowly."""


def _emit_sample(lanes: int) -> str:
    """The module's IR text: `sample(data, pages, which)` digests a line of every page.

    Which line of a page is a sample's is mixed, so that changes at equal distances do not fall between those of one.
    """
    f = Function("sample", [("data", "ptr"), ("pages", "i64"), ("which", "i64")], "i64")
    data, pages, which = f.arguments
    type_, pieces = vector("i64", lanes), LINE // (8 * lanes)

    def line(page: Value) -> Value:
        mixed = f.emit(f"lshr i64 {(page * 0x9E3779B1).text}, 16", "i64")
        return data.of("i64")[page * (_PAGE // 8) + ((mixed + which) & f.value(SAMPLES - 1)) * (LINE // 8)]

    states = _start(f, type_, pieces)
    with f.loop(0, pages, name="page", carry=states) as page:
        f.prefetch(line(page + _SOON))
        here = line(page)
        states.next = [_digested(f, state, here[i * lanes]) for i, state in enumerate(states.values)]
    digest: Value = f.value(0)
    for state in states.results:
        for i in range(lanes):
            word = f.emit(f"extractelement {type_} {state.text}, i64 {i}", "i64") if lanes > 1 else state
            digest = f.intrinsic("llvm.fshl", "i64", [digest, digest, f.value(23)]) + word
    f.do(f"ret i64 {digest.text}")
    return module([f])


@lru_cache(maxsize=4)
def _sample(target: Target) -> Any:
    """The emitted function as one of Python's."""
    lanes = target.lanes(8)
    code = jit.get("fingerprint_sample", f"{lanes}", ("sample",), lambda: _emit_sample(lanes), target)
    return ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(code["sample"])


def sample(address: int, size: int, target: Target, which: int) -> tuple[int, bytes]:
    """A sixty-fourth of the `size` bytes at an address; what does not fill the last page is in every sample.

    Those of 0 to SAMPLES - 1 together have seen everything.
    """
    rest = size % _PAGE
    return _sample(target)(address, size // _PAGE, which), ctypes.string_at(address + size - rest, rest) if rest else b""


def samples(address: int, size: int, target: Target) -> tuple[tuple[int, bytes], ...]:
    """All of them, in the order of their numbers."""
    return tuple(sample(address, size, target, which) for which in range(SAMPLES))


class Samples:
    """What stands at an address, to be compared with what stands there later: a sample of it at each look, in turn."""

    __slots__ = ("_found", "_place", "_turn")

    def __init__(self, address: int, size: int, target: Target):
        self._place, self._turn = (address, size, target), 0
        self._found = samples(*self._place)

    def unchanged(self) -> bool:
        """Whether this look finds the same."""
        turn = self._turn
        self._turn = (turn + 1) % SAMPLES
        return sample(*self._place, turn) == self._found[turn]
