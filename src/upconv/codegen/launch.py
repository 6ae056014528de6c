"""A call of a kernel as one step of the interpreter: emitted code that CPython calls as it calls its own functions.

Through ctypes the last steps of a call (where four arrays stand, seven slots to fill, the call itself) take two microseconds,
more than small layers do. Here they are a function of CPython's own kind (METH_FASTCALL) that is written like any other code of
this package: it reads the arrays' addresses from the objects, fills the job, and runs it without the interpreter's lock.

It goes by what CPython and NumPy promise to extensions (the stable ABI, the head of an array object), and what can be looked at is
looked at first. Elsewhere ctypes does the same.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.codegen import jit, memory, openmp, system, threads
from upconv.codegen.ir import Function, Value, module
from upconv.codegen.target import Target

Where = int | NDArray[Any]
"""An array, or the address of its memory."""

_FASTCALL = 0x80
_API = ("PyType_IsSubtype", "PyLong_AsVoidPtr", "PyErr_Occurred", "PyEval_SaveThread", "PyEval_RestoreThread", "Py_IncRef")
_GIVEN = ("workspace", "x", "weight", "bias", "y")
_CLEARED = ("next", "taken")
_KNOWN = (*_API, "array", "nothing", "entry", "alone", "no_bias", *_CLEARED, *_GIVEN)
"""What a launcher knows, 64 bits each: functions and objects of the interpreter, the kernel's code, whether this thread runs it
where no team does, the bias of a layer that has none, and the numbers of a job's slots."""
_HEADER = object.__basicsize__
_BYTES = bytes.__basicsize__ - 1
"""Where a bytes object has its bytes: it ends with them and a zero."""


class _Method(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("text", ctypes.c_char_p))


# -- emitted code ------------------------------------------------------------------------------------------------------


def _known(f: Function, known: Value, name: str) -> Value:
    return f.load("i64", known.of("i64")[_KNOWN.index(name)])


def _api(f: Function, known: Value, name: str, *arguments: Value, returns: str = "i64") -> Value:
    function = system.pointer(f, _known(f, known, name))
    call = f"call {returns} {function.text}({', '.join(f'{a.type} {a.text}' for a in arguments)})"
    if returns == "void":
        f.do(call)
        return Value(f, "", "void")
    return f.emit(call, returns)


def _emit_address() -> Function:
    """`address(known, object)`: of an array's memory, or the number that the object is; 0 with an error set for others."""
    f = Function("address", [("known", "ptr"), ("object", "i64")], returns="i64", attributes="internal nounwind")
    known, given = f.arguments
    at, array = system.pointer(f, given), _known(f, known, "array")
    type_ = f.load("i64", at.of("i8")[_HEADER - 8])
    other, subtype, number = f.label("other"), f.label("array"), f.label("number")
    f.do(f"br i1 {type_.equals(array).text}, label %{subtype}, label %{other}")
    f.start(other)
    is_array = _api(f, known, "PyType_IsSubtype", type_, array, returns="i32")
    f.do(f"br i1 {f.compare('ne', is_array, f.value(0, 'i32')).text}, label %{subtype}, label %{number}")
    f.start(subtype)
    f.do(f"ret i64 {f.load('i64', at.of('i8')[_HEADER]).text}")
    f.start(number)
    f.do(f"ret i64 {_api(f, known, 'PyLong_AsVoidPtr', given).text}")
    return f


def _emit_launch(address: Function) -> Function:
    """`launch(self, arguments, count)` of a job, `_GIVEN` and a team; `self` is a bytes object of `_KNOWN`.

    Returns None, or no object where an argument is neither an array nor a number, or their count is not right. The job runs on the
    team (`openmp.Runtime.team`); where that is 0, on this thread, or not at all: then it is filled only.
    """
    f = Function("launch", [("self", "ptr"), ("arguments", "ptr"), ("count", "i64")], returns="i64")
    me, arguments, count = f.arguments
    known = me.of("i8")[_BYTES]
    convert, fill, run, end, fail = (f.label(name) for name in ("convert", "fill", "run", "end", "fail"))
    nothing, entry, alone = (_known(f, known, name) for name in ("nothing", "entry", "alone"))
    f.do(f"br i1 {count.equals(2 + len(_GIVEN)).text}, label %{convert}, label %{fail}")
    f.start(convert)
    job, *given, team = (f.load("i64", arguments.of("i64")[i]) for i in range(2 + len(_GIVEN)))
    slots = system.pointer(f, f.call(address, [known, job])).of("i64")
    team = f.call(address, [known, team])
    values = []
    for name, value in zip(_GIVEN, given, strict=True):
        if name != "bias":
            values.append(f.call(address, [known, value]))
            continue
        missing = value.equals(nothing)
        bias = f.call(address, [known, f.select(missing, job, value)])  # any will do in its place
        values.append(f.select(missing, _known(f, known, "no_bias"), bias))
    f.do(f"br i1 {_api(f, known, 'PyErr_Occurred').equals(0).text}, label %{fill}, label %{fail}")
    f.start(fill)
    for name in _CLEARED:
        f.store(f.value(0), slots[_known(f, known, name)])
    for name, value in zip(_GIVEN, values, strict=True):
        f.store(value, slots[_known(f, known, name)])
    f.do(f"br i1 {(team.equals(0) & alone.equals(0)).text}, label %{end}, label %{run}")
    f.start(run)
    state = _api(f, known, "PyEval_SaveThread")
    with f.when(team.equals(0), name="alone"):
        f.do(f"call void {system.pointer(f, entry).text}(ptr {slots.text})")
    with f.otherwise(team.equals(0), name="team"):
        openmp.emit_run(f, system.pointer(f, team), entry, slots)
    _api(f, known, "PyEval_RestoreThread", state, returns="void")
    f.do(f"br label %{end}")
    f.start(end)
    _api(f, known, "Py_IncRef", nothing, returns="void")
    f.do(f"ret i64 {nothing.text}")
    f.start(fail)
    f.do("ret i64 0")
    return f


# -- for Python --------------------------------------------------------------------------------------------------------


def _is_known() -> bool:
    """Whether objects look here as the emitted code takes them to."""

    def word(address: int) -> int | None:
        return ctypes.c_void_p.from_address(address).value

    text = b"a few bytes"
    return (
        sys.implementation.name == "cpython"
        and memory.address is not memory.address_by_attribute
        and word(id(np.empty(1)) + _HEADER - 8) == id(np.ndarray)
        and ctypes.string_at(id(text) + _BYTES, len(text)) == text
    )


@lru_cache(maxsize=1)
def _api_addresses() -> tuple[int, ...]:
    return tuple(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0 for name in _API)


@lru_cache(maxsize=4)
def _method(target: Target) -> _Method:
    """How the interpreter is told of the emitted function; it keeps the address of this, which therefore lives on."""

    def write() -> str:
        address = _emit_address()
        return module([address, _emit_launch(address)])

    code = jit.get("launch", f"{_HEADER} {_BYTES} {_KNOWN}", ("launch",), write, target)
    return _Method(b"launch", code["launch"], _FASTCALL, None)


_new_function = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)

Launch = Callable[[int, int, Where, Where, Where | None, Where, int], None]
"""`launch(job, workspace, x, weight, bias, y, team)`."""


def launcher(entry: int, slots: Mapping[str, int], no_bias: int, target: Target, alone: bool = True) -> Launch:
    """What fills a job in and runs `entry(job)` on a team's threads, else (`alone`) on this one, else not at all.

    `slots` numbers the job's slots by name; `no_bias` is the address that stands for a bias of None. The arrays are the caller's to
    check, and to keep. Raises TypeError for what is neither an array nor an int.
    """
    if not _is_known():
        return by_ctypes(entry, slots, no_bias, alone)
    numbers = [slots[name] for name in (*_CLEARED, *_GIVEN)]
    known = struct.pack(f"={len(_KNOWN)}q", *_api_addresses(), id(np.ndarray), id(None), entry, alone, no_bias, *numbers)
    new: Launch = _new_function(("PyCFunction_NewEx", ctypes.pythonapi))(ctypes.addressof(_method(target)), known, None)
    return new


def by_ctypes(entry: int, slots: Mapping[str, int], no_bias: int, alone: bool = True) -> Launch:
    """The same where objects are not known to look as CPython's and NumPy's do."""
    cleared, places = tuple(slots[name] for name in _CLEARED), tuple(slots[name] for name in _GIVEN)
    run, most = threads.entry(entry), max(*cleared, *places) + 1

    def launch(job: int, workspace: int, x: Where, weight: Where, bias: Where | None, y: Where, team: int) -> None:
        filled = (ctypes.c_int64 * most).from_address(job)
        for place in cleared:
            filled[place] = 0
        for place, value in zip(places, (workspace, x, weight, no_bias if bias is None else bias, y), strict=True):
            filled[place] = value if isinstance(value, int) else memory.address(value)
        if team:
            openmp.run(team, entry, job)
        elif alone:
            run(job)

    return launch
