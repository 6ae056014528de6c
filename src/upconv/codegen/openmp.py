"""A job on the threads of the OpenMP runtime that PyTorch has brought into the process.

Its `GOMP_parallel` wakes its threads, works on the caller's, and returns when all have. A thread that slept is often woken up on
the caller's own processor, where it waits until the system's next tick (4 ms), and the caller, who spins, waits for it: the first
calls after a pause took 4 to 6 ms, whatever they did. So a job runs inside a function of ours: the caller steps aside once before
it begins and until all have come when it ends, and whoever finds itself on the caller's processor leaves it.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from upconv.codegen import jit, system
from upconv.codegen.ir import Function, Value, module
from upconv.codegen.target import Target

_ENTRY, _JOB, _SIZE, _CALLER, _PROCESSOR, _COME = range(6)
"""Words that a call's threads share: what to run, on which job, what says how many they are, the caller's thread and processor,
and how many have come."""
LOOKS = 100
"""How often to look for the others before stepping aside: a microsecond or two, in which a thread that was awake has come. To step
aside means to leave the processor to whoever wants it, for milliseconds perhaps."""
_MASK = 128
"""Bytes of a set of processors; where there are more than its bits, a thread stays where it is."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A loaded OpenMP runtime: addresses of its functions, and `omp_get_num_procs`."""

    parallel: int
    team_size: int
    processors: Any

    def team(self, count: int, target: Target) -> int:
        """The address of what says how to run jobs on `count` threads: `share`, this runtime's functions, and the count."""
        team = (ctypes.c_int64 * len(_TEAM))(_share(target), self.parallel, self.team_size, count)
        _teams.append(team)
        return ctypes.addressof(team)


_TEAM = ("share", "parallel", "size", "count")
_teams: list[Any] = []
_SHARE = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64)


def run(team: int, entry: int, job: int) -> None:
    """`entry(job)` on the threads of a team."""
    share, parallel, size, count = _known(team)
    share(parallel, size, entry, job, count)


@lru_cache(maxsize=64)
def _known(team: int) -> tuple[Any, int, int, int]:
    """What a team's words say, `share` as a function."""
    share, parallel, size, count = (ctypes.c_int64 * len(_TEAM)).from_address(team)
    return _SHARE(share), parallel, size, count


@lru_cache(maxsize=1)
def runtime(_loaded: bool) -> Runtime | None:
    """The OpenMP runtime that PyTorch ships, or None."""
    origin = getattr(sys.modules.get("torch"), "__file__", None)
    if origin is None:
        return None
    folder = Path(origin).parent
    shipped = [*folder.glob("lib/libgomp*"), *folder.glob("lib/libomp*"), *folder.glob("lib/libiomp*")]
    shipped += folder.parent.glob("torch.libs/libgomp*")
    for path in shipped:
        try:
            library = ctypes.CDLL(str(path))
            library.omp_get_num_procs.restype = ctypes.c_int
            parallel, size = (_address(f) for f in (library.GOMP_parallel, library.omp_get_num_threads))
        except (OSError, AttributeError):
            continue
        return Runtime(parallel, size, library.omp_get_num_procs)
    return None


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


# -- emitted code ------------------------------------------------------------------------------------------------------


def _emit_leave() -> Function:
    """`leave(here)`: this thread goes to another processor; where it may run later stays as it was."""
    f = Function("leave", [("here", "i64")], attributes="internal nounwind")
    (here,) = f.arguments
    allowed = Value(f, f.emit(f"alloca [{_MASK} x i8], align 8", "ptr").text, "ptr", element="i8")
    given = ("i32 0", f"i64 {_MASK}", f"ptr {allowed.text}")
    known = system.call(f, "i32 @sched_getaffinity(i32, i64, ptr)", *given)
    with f.when(known.equals(f.value(0, "i32")), name="known"):
        byte = allowed[f.emit(f"lshr i64 {here.text}, 3", "i64")]
        bits = f.load("i8", byte)
        bit = f.emit(f"trunc i64 {f.emit(f'and i64 {here.text}, 7', 'i64').text} to i8", "i8")
        others = f.emit(f"xor i8 {f.emit(f'shl i8 1, {bit.text}', 'i8').text}, -1", "i8")
        for mask in (f.emit(f"and i8 {bits.text}, {others.text}", "i8"), bits):  # the first is refused where no other is left
            f.store(mask, byte)
            system.call(f, "i32 @sched_setaffinity(i32, i64, ptr)", *given)
    return f


def _emit_come(target: Target) -> Function:
    """`come(shared)`: waits a moment for the rest of the team; whether all have come."""
    f = Function("come", [("shared", "ptr")], returns="i64", attributes="internal nounwind")
    shared = f.arguments[0].of("i64")
    size = f.emit(f"call i32 {f.load_pointer(shared[_SIZE]).text}()", "i32")
    count = f.emit(f"sext i32 {size.text} to i64", "i64")
    with f.loop(0, LOOKS, name="look"):
        with f.when(system.load(f, shared[_COME]) >= count, name="all"):
            f.do("ret i64 1")
            f.start(f.label("never"))
        system.pause(f, target)
    f.do("ret i64 0")
    return f


def _emit_member(leave: Function, come: Function) -> Function:
    """`member(shared)`: what each thread of the team runs."""
    f = Function("member", [("shared", "ptr")])
    shared = f.arguments[0].of("i64")
    entry, job = (f.load_pointer(shared[word]) for word in (_ENTRY, _JOB))
    caller, here = system.call(f, "i64 @pthread_self()").equals(f.load("i64", shared[_CALLER])), system.processor(f)
    with f.when(caller, name="caller"):
        system.store(f, here, shared[_PROCESSOR])
    f.do(f"atomicrmw add ptr {shared[_COME].text}, i64 1 seq_cst, align 8")
    with f.when(caller, name="begin"), f.when(f.call(come, [shared]).equals(0), name="aside"):
        system.call(f, "i32 @sched_yield()")
    with f.otherwise(caller, name="other"), f.when(here.equals(system.load(f, shared[_PROCESSOR])), name="same"):
        f.call(leave, [here])
    f.do(f"call void {entry.text}(ptr {job.text})")
    with f.when(caller, name="end"):
        system.wait(f, lambda: f.call(come, [shared]).equals(0), lambda: system.call(f, "i32 @sched_yield()"))
    return f


def _emit_share(member: Function) -> Function:
    """`share(parallel, size, function, job, count)`: `function(job)` on a team of `count` threads, this one among them."""
    f = Function("share", [*((name, "ptr") for name in ("parallel", "size", "function", "job")), ("count", "i64")])
    parallel, size, function, job, count = f.arguments
    shared = Value(f, f.emit("alloca [8 x i64], align 64", "ptr").text, "ptr", element="i64")
    for word, value in ((_ENTRY, function), (_JOB, job), (_SIZE, size)):
        f.store(value, shared[word])
    for word, value in ((_CALLER, system.call(f, "i64 @pthread_self()")), (_PROCESSOR, f.value(-1)), (_COME, f.value(0))):
        f.store(value, shared[word])
    f.do(f"call void {parallel.text}(ptr @{member.name}, ptr {shared.text}, i32 {f.truncated(count).text}, i32 0)")
    return f


def emit_run(f: Function, team: Value, entry: Value, job: Value) -> None:
    """The code of `run`."""
    share, parallel, size = (system.pointer(f, f.load("i64", team[i])).text for i in range(3))
    function = system.pointer(f, entry).text
    f.do(f"call void {share}(ptr {parallel}, ptr {size}, ptr {function}, ptr {job.text}, i64 {f.load('i64', team[3]).text})")


@lru_cache(maxsize=1)
def _plain_share() -> Any:
    return _SHARE(_share_plainly)


def _share(target: Target) -> int:
    """The address of `share`."""
    if sys.platform != "linux":  # there is no saying which processor a thread runs on
        return _address(_plain_share())

    def write() -> str:
        leave, come = _emit_leave(), _emit_come(target)
        member = _emit_member(leave, come)
        return module([leave, come, member, _emit_share(member)])

    return jit.get("openmp", f"looks {LOOKS}", ("share",), write, target)["share"]


_PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


def _share_plainly(parallel: int, _size: int, function: int, job: int, count: int) -> None:
    _PARALLEL(parallel)(function, job, count, 0)
