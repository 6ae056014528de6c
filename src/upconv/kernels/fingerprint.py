"""A 64-bit fingerprint of an array's bytes, at memory speed: whether a packed weight is still that of its parameter.

Each 64-bit lane keeps a state that is rotated and added to the data, so that any change of one element changes its lane's
state for certain, and other changes go unseen with a chance of about 2**-64. It guards against mistakes, not attackers.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

from upconv.codegen import jit, threads
from upconv.codegen.ir import Carry, Function, Value, module, vector
from upconv.codegen.target import Target
from upconv.kernels import job as jobs

SLOTS = jobs.Slots(("data", "blocks", "out"))
_Job = ctypes.c_int64 * len(SLOTS.names)
_STATES = 8
_PART = 1 << 18
"""Bytes that a task digests: the same parts on any number of threads."""


def _emit(lanes: int) -> str:
    """The module's IR text; task i of `entry(job)` digests part i: `out` gets its states. Only whole blocks are looked at."""
    type_, step = vector("i64", lanes), _STATES * lanes
    turn = f"llvm.fshl.v{lanes}i64"

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        del workspace
        f.declarations[turn] = f"declare {type_} @{turn}({type_}, {type_}, {type_})"
        data, out = (SLOTS.pointer(f, job, name, "i64") for name in ("data", "out"))
        part = _PART // (step * 8)
        first = number * part
        start = [Value(f, f"splat (i64 {0x9E3779B97F4A7C15 - (1 << 64) + i})", type_) for i in range(_STATES)]
        states = Carry(start)
        with f.loop(first, f.minimum(first + part, SLOTS.read(f, job, "blocks")), name="block", carry=states) as i:
            for s, state in enumerate(states.values):
                word = f.load(type_, data[i * step + s * lanes])
                turned = f.emit(f"call {type_} @{turn}({type_} {state.text}, {type_} {state.text}, {type_} splat (i64 23))", type_)
                states.next.append(f.emit(f"add {type_} {turned.text}, {word.text}", type_))
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
        small = _Job(0, 1, 0, 0, 0, address, whole, ctypes.addressof(out))
        alone(ctypes.addressof(small))
    else:
        job = jobs.filled(SLOTS, {"data": address, "blocks": whole, "out": ctypes.addressof(out)}, parts)
        threads.run(entry, job.ctypes.data, threads.get_num_threads(), target)
    rest = ctypes.string_at(address + whole * block, size - whole * block)
    return hash((bytes(out), rest))
