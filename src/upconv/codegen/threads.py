"""Running one job on several threads: one face, two runtimes.

Where PyTorch has brought an OpenMP runtime into the process, its pool is used: a second pool would fight with its spinning
threads for the cores. Elsewhere workers of our own wait inside emitted code, spinning for a short while and then sleeping
in the kernel (futex), so that a call costs about a microsecond when hot. A worker that has not woken by the time the caller
has drawn the last task is not waited for; if that was long, or if it works where the caller runs, it is kept from there.

A forked child never uses the parent's OpenMP pool (libgomp hangs there); it starts workers of its own.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import Any

from upconv.codegen import jit, openmp, system
from upconv.codegen.ir import Carry, Function, module
from upconv.codegen.target import Target

SPINS = 4000  # about 100-200 microseconds of pauses
MOST_THREADS = 64
PATIENCE = 3e-4
"""Seconds after which a worker that was woken up and has not come is taken to be kept from running."""
_BLOCK = 128  # bytes a worker: state, sleeping, function, processor it last worked on, padded to two lines
_STATE, _SLEEPING, _FUNCTION, _PROCESSOR = 0, 1, 2, 3
_STOP = 4
_FUTEX = {"x86_64": 202, "aarch64": 98}

_chosen: int | None = None
_torchs_count: Callable[[], int] | None = None  # once torch is loaded, and kept: every call asks it


def available() -> int:
    """Processors this process may use.

    An OpenMP runtime may have bound this very thread to one of them (OMP_PROC_BIND): it knows how many there are.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    host = None if _openmp_left_behind else openmp.runtime("torch" in sys.modules)
    return min(count if host is None else max(count, host.processors()), MOST_THREADS)


def set_num_threads(n: int) -> None:
    """How many threads a call may use from now on, in every thread of the process.

    >>> set_num_threads(1)
    >>> get_num_threads()
    1
    >>> set_num_threads(available())

    Raises ValueError for less than 1. More than the processors that the process may use is taken as that many.
    """
    global _chosen
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"number of threads is {n!r}: give a whole number of at least 1")
    _chosen = min(n, available())


def get_num_threads() -> int:
    """How many threads a call may use: as set, else as PyTorch says where it is loaded, else one a processor.

    >>> get_num_threads() <= available()
    True

    UPCONV_NUM_THREADS and OMP_NUM_THREADS lower the last of these.
    """
    if _chosen is not None:
        return _chosen
    asked = asked_for()
    return _default() if asked is None else max(1, min(int(asked), available()))


def asked_for() -> int | None:
    """What `get_num_threads` goes by, in a tenth of its time: another value of it may mean another number of threads.

    >>> asked_for() == asked_for()
    True
    """
    global _torchs_count
    if _chosen is not None:
        return _chosen
    if _torchs_count is None:
        _torchs_count = getattr(sys.modules.get("torch"), "get_num_threads", None)
    return None if _torchs_count is None else _torchs_count()


@lru_cache(maxsize=1)
def _default() -> int:
    text = os.environ.get("UPCONV_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    return min(int(text), available()) if text.isdigit() and int(text) else available()


# -- emitted code ------------------------------------------------------------------------------------------------------


def _emit_worker(target: Target, futex: int) -> Function:
    """`worker(block)`: waits for an offer, runs it, until told to stop.

    The state word is 0 when idle, job|1 when offered, job|2 when running, _STOP to end. Jobs are 64-byte aligned.
    """
    f = Function("worker", [("block", "ptr")])
    block = f.arguments[0].of("i64")
    state, sleeping, function = block[_STATE], block[_SLEEPING], block[_FUNCTION]
    wait, look, idle, sleep, take, run, done = (f.label(n) for n in ("wait", "look", "idle", "sleep", "take", "run", "done"))
    f.do(f"br label %{wait}")
    f.start(wait)
    f.do(f"br label %{look}")
    f.start(look)
    spins = f.emit(f"phi i64 [ 0, %{wait} ], [ %more, %{idle} ]", "i64")
    now = system.load(f, state)
    f.do(f"br i1 {(now & f.value(1)).equals(1).text}, label %{take}, label %{idle}")
    f.start(idle)
    system.pause(f, target)
    f.do(f"%more = add i64 {spins.text}, 1")
    stop = now.equals(_STOP)
    f.do(f"%spent = icmp sge i64 %more, {SPINS}")
    tired = f.emit(f"or i1 {stop.text}, %spent", "i1")
    f.do(f"br i1 {tired.text}, label %{sleep}, label %{look}")
    f.start(sleep)
    over = f.label("over")
    f.do(f"br i1 {stop.text}, label %{done}, label %{over}")
    f.start(over)
    system.store(f, f.value(1), sleeping)
    system.futex(f, futex, state, 128, 0)  # FUTEX_WAIT | FUTEX_PRIVATE_FLAG while the word is 0
    system.store(f, f.value(0), sleeping)
    f.do(f"br label %{wait}")
    f.start(take)
    job = f.emit(f"xor i64 {now.text}, 1", "i64")
    running = f.emit(f"or i64 {job.text}, 2", "i64")
    f.do(f"br i1 {system.exchange(f, state, now, running).text}, label %{run}, label %{wait}")
    f.start(run)
    code, data = f.load("ptr", function), system.pointer(f, job)
    f.store(system.processor(f), block[_PROCESSOR])
    f.do(f"call void {code.text}(ptr {data.text})")
    system.store(f, f.value(0), state)
    f.do(f"br label %{wait}")
    f.start(done)
    return f


def _emit_submit(target: Target, futex: int) -> Function:
    """`submit(blocks, count, function, job)`: offers the job to `count` workers, works on it, waits for those who took it.

    Returns a bit for each worker who was no help: who had not taken its offer by then, or took it on the caller's processor.
    """
    f = Function("submit", [("blocks", "ptr"), ("count", "i64"), ("function", "ptr"), ("job", "ptr")], returns="i64")
    blocks, count, function, job = f.arguments
    address = f.emit(f"ptrtoint ptr {job.text} to i64", "i64")
    offered, running = f.emit(f"or i64 {address.text}, 1", "i64"), f.emit(f"or i64 {address.text}, 2", "i64")
    claimed = f.emit(f"or i64 {address.text}, 3", "i64")
    claimed = f.emit(f"xor i64 {claimed.text}, 1", "i64")  # job|2: not offered yet, not idle
    with f.loop(0, count, name="offer") as i:
        block = blocks.of("i64")[i * (_BLOCK // 8)]
        with f.when(system.exchange(f, block[_STATE], f.value(0), claimed), name="idle"):
            f.store(function, block[_FUNCTION])
            system.store(f, offered, block[_STATE])
            with f.when(system.load(f, block[_SLEEPING]).equals(1), name="asleep"):
                system.futex(f, futex, block[_STATE], 129, 1)  # FUTEX_WAKE | FUTEX_PRIVATE_FLAG
    f.do(f"call void {function.text}(ptr {job.text})")
    here = system.processor(f)
    no_help = Carry([f.value(0)])
    with f.loop(0, count, name="collect", carry=no_help) as i:
        block = blocks.of("i64")[i * (_BLOCK // 8)]
        state = block[_STATE]
        back = system.exchange(f, state, offered, f.value(0))
        with f.otherwise(back, name="taken"):
            system.wait(f, lambda: system.load(f, state).equals(running), lambda: system.pause(f, target))
        beside = f.load("i64", block[_PROCESSOR]).equals(here)
        bit = f.emit(f"shl i64 1, {i.text}", "i64")
        no_help.next = [no_help.values[0] | f.select(back | beside, bit, 0)]
    f.do(f"ret i64 {no_help.results[0].text}")
    return f


# -- runtimes ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Workers:
    """Workers of our own. `threads[i]` waits at block i."""

    memory: Any
    address: int
    submit: Any
    worker: Any
    threads: list[threading.Thread]

    def grow(self, count: int) -> None:
        while len(self.threads) < count:
            at = self.address + len(self.threads) * _BLOCK
            thread = threading.Thread(target=self.worker, args=(at,), name="upconv worker", daemon=True)
            self.threads.append(thread)
            thread.start()

    def run(self, function: int, job: int, count: int) -> None:
        """The job on the calling thread and, as far as they come, on `count` workers."""
        start = perf_counter()
        no_help = self.submit(self.address, count, function, job)
        if no_help:
            self._part(no_help, perf_counter() - start > PATIENCE)

    def _part(self, which: int, long: bool) -> None:
        """Keeps those workers from the caller's processor that last worked there, or that a `long` call was in vain for.

        One that works there spins on there as well: a call of 0.05 ms took 0.25, again and again for seconds.
        """
        here = _processor()
        for i, thread in enumerate(self.threads):
            if which >> i & 1 and (long or self._word(i, _PROCESSOR).value == here):
                _keep_away(thread.native_id, here)

    def _word(self, worker: int, entry: int) -> ctypes.c_int64:
        return ctypes.c_int64.from_address(self.address + worker * _BLOCK + 8 * entry)

    def stop(self) -> None:
        """Ends idle workers; called at exit, when none is running."""
        for i in range(len(self.threads)):
            self._word(i, _STATE).value = _STOP
        wake = ctypes.CDLL(None).syscall
        for i, thread in enumerate(self.threads):
            wake(_FUTEX[os.uname().machine], ctypes.c_void_p(self.address + i * _BLOCK), 129, 1, None, None, 0)
            thread.join(timeout=1.0)


def _keep_away(thread: int | None, processor: int) -> None:
    """Keeps a thread from the caller's processor, where the system has woken it up to wait for its turn, or to take turns.

    It would do so again: waking up where the waker runs is what schedulers like best, and they even it out in tens of
    milliseconds, where a call takes one. Should this thread be moved, the next call that waits in vain says so anew.
    """
    with suppress(OSError, AttributeError):  # no such system call, or not allowed: it will be moved some time
        elsewhere = os.sched_getaffinity(0) - {processor}
        if thread and elsewhere:
            os.sched_setaffinity(thread, elsewhere)


@lru_cache(maxsize=1)
def _processor_number() -> Any:
    return ctypes.CDLL(None).sched_getcpu


def _processor() -> int:
    """The processor that this thread runs on."""
    return int(_processor_number()())


_workers: _Workers | None = None
_workers_lock = threading.Lock()
_openmp_left_behind = False  # a parent had the OpenMP runtime, perhaps with threads that this process lacks


def _reset_after_fork() -> None:
    global _workers, _workers_lock, _openmp_left_behind
    _workers, _workers_lock = None, threading.Lock()
    _openmp_left_behind = _openmp_left_behind or "torch" in sys.modules
    teams.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def _stop_at_exit() -> None:
    if _workers is not None:
        _workers.stop()


def _own(target: Target) -> _Workers | None:
    """Our workers, or None where there is no futex."""
    global _workers
    if _workers is not None:
        return _workers
    futex = _FUTEX.get(os.uname().machine) if sys.platform == "linux" else None
    if futex is None:
        return None
    with _workers_lock:
        if _workers is None:
            code = jit.get(
                "threads",
                f"spins {SPINS}",
                ("worker", "submit"),
                lambda: module([_emit_worker(target, futex), _emit_submit(target, futex)]),
                target,
            )
            memory = ctypes.create_string_buffer(_BLOCK * (MOST_THREADS + 1))
            address = -(-ctypes.addressof(memory) // _BLOCK) * _BLOCK
            worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code["worker"])
            types = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
            submit = ctypes.CFUNCTYPE(ctypes.c_uint64, *types)(code["submit"])
            _workers = _Workers(memory, address, submit, worker, [])
            atexit.register(_stop_at_exit)
    return _workers


_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@lru_cache(maxsize=4096)
def entry(address: int) -> Any:
    """The emitted function at an address as a Python callable of one pointer; the call releases the GIL."""
    return _ENTRY(address)


teams: dict[int, int] = {}
"""By the number of threads, the teams of the OpenMP runtime (`openmp.Runtime.team`) that jobs have run on: `launch` runs more."""


def _team(count: int, target: Target) -> int:
    """The OpenMP runtime's team of so many threads; 0 where there is none, or none that this process may use."""
    host = None if _openmp_left_behind else openmp.runtime("torch" in sys.modules)
    if host is None:
        return 0
    return teams.setdefault(count, host.team(count, target))


def run(address: int, job: int, count: int, target: Target) -> None:
    """Calls the emitted `entry(job)` at `address` on up to `count` threads, this one among them; `job` is 64-byte aligned."""
    if count <= 1:
        entry(address)(job)
        return
    team = teams.get(count) or _team(count, target)
    if team:
        openmp.run(team, address, job)
        return
    workers = _own(target)
    if workers is None:
        _run_python_threads(address, job, count)
        return
    if len(workers.threads) < count - 1:
        with _workers_lock:
            workers.grow(count - 1)
    workers.run(address, job, count - 1)


def _run_python_threads(address: int, job: int, count: int) -> None:
    """Where there is neither OpenMP nor futex: plain threads, started for the call."""
    function = entry(address)
    helpers = [threading.Thread(target=function, args=(job,)) for _ in range(count - 1)]
    for thread in helpers:
        thread.start()
    function(job)
    for thread in helpers:
        thread.join()
