"""A 64-bit fingerprint of an array's bytes, at memory speed: whether a packed weight is still that of its parameter.

Each 64-bit lane keeps a state that is rotated and added to the data, so that any change of one element changes its lane's
state for certain, and other changes go unseen with a chance of about 2**-64. It guards against mistakes, not attackers.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

from upconv.codegen import jit
from upconv.codegen.ir import Carry, Function, Value, module, vector
from upconv.codegen.target import Target

_STATES = 8


def _emit(lanes: int) -> Function:
    """`fingerprint(data, bytes, out)`: `out` gets the states; bytes beyond the last whole block are left to the caller."""
    type_ = vector("i64", lanes)
    f = Function("fingerprint", [("data", "ptr"), ("blocks", "i64"), ("out", "ptr")])
    data, blocks, out = f.arguments
    data, out = data.of("i64"), out.of("i64")
    start = [Value(f, f"splat (i64 {0x9E3779B97F4A7C15 - (1 << 64) + i})", type_) for i in range(_STATES)]
    states = Carry(start)
    name = f"llvm.fshl.v{lanes}i64"
    f.declarations[name] = f"declare {type_} @{name}({type_}, {type_}, {type_})"
    with f.loop(0, blocks, name="block", carry=states) as i:
        for s, state in enumerate(states.values):
            word = f.load(type_, data[i * (_STATES * lanes) + s * lanes])
            turned = f.emit(f"call {type_} @{name}({type_} {state.text}, {type_} {state.text}, {type_} splat (i64 23))", type_)
            states.next.append(f.emit(f"add {type_} {turned.text}, {word.text}", type_))
    for s, state in enumerate(states.results):
        f.store(state, out[s * lanes])
    return f


@lru_cache(maxsize=4)
def _function(target: Target) -> tuple[Any, int]:
    lanes = target.lanes(8)
    code = jit.get("fingerprint", f"{lanes}", ("fingerprint",), lambda: module([_emit(lanes)]), target)
    types = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    return ctypes.CFUNCTYPE(None, *types)(code["fingerprint"]), _STATES * lanes * 8


SMALL = 16 << 10
"""Up to so many bytes the content itself is cheaper to keep and compare than to digest."""


def fingerprint(address: int, size: int, target: Target) -> int | bytes:
    """Of the `size` bytes at an address."""
    if size <= SMALL:
        return ctypes.string_at(address, size)
    function, block = _function(target)
    out = (ctypes.c_int64 * (block // 8))()
    whole = size // block
    function(address, whole, out)
    rest = ctypes.string_at(address + whole * block, size - whole * block)
    return hash((bytes(out), rest))
