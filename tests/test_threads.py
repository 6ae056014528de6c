"""Threads: every task is done once, by no more threads than allowed; calls at once, forks, resizes and exits end well."""

from __future__ import annotations

import ctypes
import sys
import threading

import numpy as np
import pytest

import upconv
from processes import child, said
from upconv.codegen import jit, openmp, threads
from upconv.codegen.ir import module
from upconv.codegen.target import host
from upconv.kernels import job as jobs

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="fork and futex")
SET_UP = """
import os, sys, threading, time
import numpy as np
if {torch}:
    import torch
    torch.ones(400, 400) @ torch.ones(400, 400)
import upconv
from upconv.codegen import threads
rng = np.random.default_rng(0)
x = rng.integers(-4, 5, (2, 64, 40, 40)).astype("f4")
w = rng.integers(-4, 5, (64, 32, 4, 4)).astype("f4")
def call():
    return upconv.conv_transpose(x, w, stride=2, padding=1)
upconv.set_num_threads(1)
y = call()
upconv.set_num_threads(threads.available())
"""
RUNTIMES = pytest.mark.parametrize("torch", [False, True], ids=["own workers", "torch's pool"])


def program(torch: bool, code: str) -> str:
    if torch:
        pytest.importorskip("torch")
    return SET_UP.format(torch=torch) + code


# -- the face ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def chosen() -> object:
    """Restores the number of threads."""
    before = threads._chosen
    yield
    threads._chosen = before


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2", True, None])
def test_a_wrong_number_of_threads_is_refused_and_changes_nothing(wrong: object, chosen: object) -> None:
    before = upconv.get_num_threads()
    with pytest.raises(ValueError, match="give a whole number of at least 1") as refused:
        upconv.set_num_threads(wrong)
    assert str(refused.value) == f"number of threads is {wrong!r}: give a whole number of at least 1"
    assert upconv.get_num_threads() == before


def test_never_more_threads_than_the_process_may_use(chosen: object) -> None:
    upconv.set_num_threads(10_000)
    assert upconv.get_num_threads() == threads.available()
    upconv.set_num_threads(1)
    assert upconv.plan((64, 64, 64, 64), (64, 64, 4, 4), stride=2).threads == 1


@LINUX
def test_the_environment_and_torch_say_how_many() -> None:
    count = "import upconv; print(upconv.get_num_threads())"
    assert said(count, UPCONV_NUM_THREADS="1") == "1"
    assert said(count, UPCONV_NUM_THREADS="nonsense", OMP_NUM_THREADS="") == str(threads.available())
    pytest.importorskip("torch")
    obeys = """
import torch, upconv
plan = lambda: upconv.plan((8, 64, 64, 64), (64, 64, 4, 4), stride=2).threads
torch.set_num_threads(1)
print(upconv.get_num_threads(), plan())
torch.set_num_threads(2)
print(upconv.get_num_threads(), plan())
upconv.set_num_threads(1)
print(upconv.get_num_threads(), plan())
"""
    most = min(2, threads.available())
    assert said(obeys).splitlines() == ["1 1", f"{most} {most}", "1 1"]


@LINUX
def test_a_thread_that_openmp_has_bound_to_one_processor_still_uses_them_all() -> None:
    """OMP_PROC_BIND pins the thread that loads PyTorch to the first processor, and the runtime's workers to the others."""
    pytest.importorskip("torch")
    many = """
import torch, upconv
x, w = torch.randn(8, 64, 32, 32), torch.randn(64, 64, 4, 4)
near = torch.allclose(upconv.torch.conv_transpose2d(x, w, stride=2), torch.conv_transpose2d(x, w, stride=2), atol=1e-3)
print(near, upconv.get_num_threads(), upconv.plan(x.shape, w.shape, stride=2).threads)
"""
    count = min(2, threads.available())
    assert said("import upconv.torch\n" + many, OMP_PROC_BIND="true", OMP_NUM_THREADS=str(count)) == f"True {count} {count}"


# -- each task once -----------------------------------------------------------------------------------------------------------

SLOTS = jobs.Slots(("counters",))
TASKS = 200


def counting_job(count: int) -> tuple[int, int, np.ndarray, np.ndarray]:
    """Emitted code whose task adds one to that task's counter: (entry, job address, job, counters)."""

    def task(f, job, number, workspace):  # type: ignore[no-untyped-def]
        counter = SLOTS.pointer(f, job, "counters", "i64")[number]
        f.emit(f"atomicrmw add ptr {counter.text}, i64 1 monotonic, align 8", "i64")

    code = jit.get("count", "test", ("entry",), lambda: module([jobs.emit_entry("entry", SLOTS, task)]), host())
    counters, memory = np.zeros(TASKS, np.int64), np.zeros(64, np.int64)
    skip = -memory.ctypes.data % 64 // 8
    job = memory[skip : skip + len(SLOTS.names)]
    job[jobs.TASKS], job[jobs.SEATS], job[SLOTS.index["counters"]] = TASKS, count, counters.ctypes.data
    return code["entry"], job.ctypes.data, job, counters


def run_many(count: int, repeats: int = 300) -> None:
    address, where, job, counters = counting_job(count)
    for turn in range(1, repeats + 1):
        job[jobs.NEXT] = job[jobs.TAKEN] = 0
        threads.run(address, where, count, host())
        assert (counters == turn).all()
        assert 0 < job[jobs.TAKEN] < 1 << count


def without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where PyTorch is not loaded."""
    monkeypatch.setattr(openmp, "runtime", lambda _: None)
    monkeypatch.setattr(threads, "teams", {})


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_task_is_done_once_and_by_no_more_threads_than_asked(count: int) -> None:
    run_many(count)


def test_the_same_with_workers_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    without_openmp(monkeypatch)
    monkeypatch.setattr(threads, "_workers", None)
    before = threading.enumerate()

    def started() -> int:
        return len([t for t in threading.enumerate() if t.name == "upconv worker" and t not in before])

    try:
        for count in (2, 3, 5):
            run_many(count)
        assert started() == 4
    finally:
        if threads._workers is not None:
            threads._workers.stop()  # they wait in memory that is given up with it
    assert started() == 0


def test_the_same_with_plain_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    without_openmp(monkeypatch)
    monkeypatch.setattr(threads, "_own", lambda _: None)
    run_many(3, repeats=30)


@pytest.mark.parametrize("own", [True, False], ids=["own workers", "any pool"])
def test_callers_at_once_share_workers_without_losing_a_task(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if own:
        without_openmp(monkeypatch)
    errors: list[BaseException] = []

    def caller() -> None:
        try:
            run_many(3, repeats=150)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=caller) for _ in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(60)
    assert not any(t.is_alive() for t in callers)
    assert errors == []


def test_a_worker_gone_to_sleep_wakes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer pauses than the spin: the worker sleeps in the kernel in between, and the next job still gets it or does without."""
    import time

    without_openmp(monkeypatch)
    for _ in range(15):
        run_many(2, repeats=2)
        time.sleep(0.01)


def test_an_emitted_entry_releases_the_gil() -> None:
    function = threads.entry(counting_job(1)[0])
    assert not isinstance(function, ctypes.PYFUNCTYPE(None))


# -- processes -----------------------------------------------------------------------------------------------------------------


@LINUX
@RUNTIMES
def test_python_threads_calling_at_once(torch: bool) -> None:
    code = """
wrong = []
def work():
    for _ in range(40):
        if not np.array_equal(call(), y): wrong.append(1)
callers = [threading.Thread(target=work) for _ in range(3)]
[t.start() for t in callers]; [t.join() for t in callers]
print(len(wrong))
"""
    assert said(program(torch, code)) == "0"


@LINUX
@RUNTIMES
def test_resizing_between_and_during_calls(torch: bool) -> None:
    code = """
wrong, over = [], []
def work():
    while not over:
        if not np.array_equal(call(), y): wrong.append(1)
callers = [threading.Thread(target=work) for _ in range(2)]
[t.start() for t in callers]
for turn in range(60):
    upconv.set_num_threads(1 + turn % 2)
    if not np.array_equal(call(), y): wrong.append(2)
over.append(1)
[t.join() for t in callers]
print(len(wrong), sum(t.name == "upconv worker" for t in threading.enumerate()) < threads.available())
"""
    assert said(program(torch, code)) == "0 True"


@LINUX
@RUNTIMES
def test_a_fork_while_workers_wait_leaves_both_processes_right(torch: bool) -> None:
    """The child starts workers of its own, and writes neither into its parent's pool nor into the parent's arrays."""
    code = """
kept = call(); copy = kept.copy(); call()
children = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        kept[...] = 7
        right = all(np.array_equal(call(), y) for _ in range(20))
        os._exit(0 if right else 1)
    children.append(pid)
right = all(np.array_equal(call(), y) for _ in range(20))
print(right, [os.waitpid(pid, 0)[1] for pid in children], np.array_equal(kept, copy), np.array_equal(call(), y))
"""
    # Python 3.12 warns of every fork of a process with threads; -W error in `said` would make that an exception
    code = "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + code
    assert said(program(torch, code)) == "True [0, 0, 0] True True"


@LINUX
@RUNTIMES
def test_a_fork_while_another_thread_is_calling(torch: bool) -> None:
    code = """
import warnings; warnings.simplefilter('ignore', DeprecationWarning)
over = []
def work():
    while not over: call()
caller = threading.Thread(target=work); caller.start()
states = []
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(np.array_equal(call(), y) for _ in range(3)) else 1)
    states.append(os.waitpid(pid, 0)[1])
over.append(1); caller.join()
print(states)
"""
    assert said(program(torch, code)) == "[0, 0, 0, 0, 0]"


@LINUX
def test_a_fork_while_another_thread_is_compiling() -> None:
    """LLVM is behind a lock that a child would find taken for ever: a fork waits until it is free."""
    code = """
import warnings; warnings.simplefilter('ignore', DeprecationWarning)
from upconv.codegen import jit
from upconv.codegen.target import host
compiling = threading.Event()
def text(name):
    compiling.set()
    lines = "".join(f"%v{i + 1} = xor i64 %v{i}, {i}\\n" for i in range(3000))
    return f"define i64 @{name}(i64 %v0) {{\\n{lines}ret i64 %v3000\\n}}\\n"
def compiled(name): return jit.get(name, str(time.time_ns()), (name,), lambda: text(name), host())[name] != 0
states = []
for turn in range(5):
    compiling.clear()
    other = threading.Thread(target=compiled, args=("other",)); other.start()
    compiling.wait(); time.sleep(0.002 * turn)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if compiled("child") else 1)
    states.append(os.waitpid(pid, 0)[1])
    other.join()
print(states)
"""
    assert said(program(False, code)) == "[0, 0, 0, 0, 0]"


@LINUX
@pytest.mark.skipif(threads.available() < 2, reason="one processor")
def test_a_worker_on_the_callers_processor_is_sent_elsewhere() -> None:
    """Held on one processor, the two cannot run at once: whether the worker waits for its turn or takes turns, a call tells."""
    code = """
call()
allowed = sorted(os.sched_getaffinity(0))
worker = next(t.native_id for t in threading.enumerate() if t.name == "upconv worker")
for thread in (0, worker): os.sched_setaffinity(thread, allowed[:1])
actual, os.sched_getaffinity = os.sched_getaffinity, lambda _: set(allowed)
for _ in range(50):
    time.sleep(0.001)
    right = np.array_equal(call(), y)
    if actual(worker) == set(allowed[1:]): break
print(right, actual(worker) == set(allowed[1:]))
"""
    assert said(program(False, code)) == "True True"


@pytest.mark.parametrize(("which", "worked_on", "short", "long"), [(1, 0, 0, 1), (1, 3, 1, 1), (0, 3, 0, 0), (0, 0, 0, 0)])
def test_whom_a_call_sends_elsewhere(monkeypatch: pytest.MonkeyPatch, which: int, worked_on: int, short: int, long: int) -> None:
    """Of those who were no help, who worked on the caller's processor; and after a long call whoever did not come."""
    moved: list[tuple[int | None, int]] = []
    monkeypatch.setattr(threads, "_processor", lambda: 3)
    monkeypatch.setattr(threads, "_keep_away", lambda thread, processor: moved.append((thread, processor)))
    memory = (ctypes.c_int64 * 16)()
    memory[threads._PROCESSOR] = worked_on
    workers = threads._Workers(memory, ctypes.addressof(memory), lambda *_: which, None, [threading.current_thread()])
    for patience, sent in ((1e3, short), (0.0, long)):
        moved.clear()
        monkeypatch.setattr(threads, "PATIENCE", patience)
        workers.run(0, 0, 1)
        assert moved == [(threading.get_native_id(), 3)] * sent


LEAVE = """
import ctypes
from upconv.codegen import jit, openmp, threads
from upconv.codegen.ir import module
from upconv.codegen.target import host
f = openmp._emit_leave()
f.attributes = "nounwind"
code = jit.get("leave", "test", ("leave",), lambda: module([f]), host())
leave = ctypes.CFUNCTYPE(None, ctypes.c_int64)(code["leave"])
"""


@LINUX
@pytest.mark.skipif(threads.available() < 2, reason="one processor")
def test_a_thread_leaves_a_processor_and_may_come_back() -> None:
    code = """
import os
allowed = os.sched_getaffinity(0)
left = []
for _ in range(20):
    here = threads._processor()
    leave(here)
    left.append(threads._processor() != here)
print(sum(left) > 15, os.sched_getaffinity(0) == allowed)
"""
    assert said(LEAVE + code) == "True True"  # in between, the system may move it as well


@LINUX
def test_a_thread_with_one_processor_stays() -> None:
    code = """
import os
only = {min(os.sched_getaffinity(0))}
os.sched_setaffinity(0, only)
leave(threads._processor())
print(os.sched_getaffinity(0) == only, {threads._processor()} == only)
"""
    assert said(LEAVE + code) == "True True"


@LINUX
def test_torchs_pool_without_stepping_aside() -> None:
    """As on systems where no thread can say which processor it runs on."""
    code = """
from upconv.codegen import openmp, threads
openmp._share = lambda target: openmp._address(openmp._plain_share())
threads.teams.clear()
print(np.array_equal(call(), y), np.array_equal(call(), y), len(threads.teams))
"""
    assert said(program(True, code)) == "True True 1"


@LINUX
@pytest.mark.parametrize("limit", ["", "1"])
def test_torchs_threads_are_waited_for_and_keep_their_processors(limit: str) -> None:
    """Also where the runtime gives fewer threads than asked for, and where all of them have the caller's processor only."""
    code = """
def allowed(): return {int(t): os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task")}
call()
before = allowed()
right = []
for pause in (0, 0.001, 0.03, 0.03, 0.03):
    time.sleep(pause)
    right.append(np.array_equal(call(), y))
kept = allowed() == before
for t in before: os.sched_setaffinity(t, {min(before[t])})
right += [np.array_equal(call(), y) for _ in range(5)]
print(all(right), kept)
"""
    assert said(program(True, code), timeout=60, **({"OMP_THREAD_LIMIT": limit} if limit else {})) == "True True"


@LINUX
@RUNTIMES
def test_the_interpreter_ends_at_once_with_workers_waiting(torch: bool) -> None:
    assert said(program(torch, "call(); t = time.perf_counter(); print(np.array_equal(call(), y))"), timeout=30) == "True"


@LINUX
@RUNTIMES
def test_the_interpreter_ends_with_daemons_in_the_middle_of_a_call(torch: bool) -> None:
    code = """
def work():
    while True: call()
for _ in range(2): threading.Thread(target=work, daemon=True).start()
time.sleep(0.2); print("leaving")
"""
    for _ in range(3):
        assert said(program(torch, code), timeout=30) == "leaving"


@LINUX
def test_no_worker_is_started_beside_torch_and_none_for_one_thread() -> None:
    """Counted by the system too: whatever NumPy or torch have started was there before."""
    code = """
before = len(os.listdir("/proc/self/task"))
{limit}
for _ in range(5): call()
print(sum(t.name == "upconv worker" for t in threading.enumerate()), len(os.listdir("/proc/self/task")) - before)
"""
    own = threads.available() - 1
    assert said(program(False, code.format(limit=""))) == f"{own} {own}"
    assert said(program(False, code.format(limit="upconv.set_num_threads(1)"))) == "0 0"
    pytest.importorskip("torch")
    assert said(program(True, code.format(limit=""))) == "0 0"


@LINUX
@pytest.mark.parametrize("start", ["spawn", "forkserver", "fork"])
def test_pools_of_processes(start: str, tmp_path: object) -> None:
    from pathlib import Path

    script = Path(str(tmp_path)) / "pool.py"
    script.write_text(
        f"""
import multiprocessing, warnings
import numpy as np
import upconv

def work(seed):
    x = np.random.default_rng(seed).integers(-4, 5, (2, 64, 40, 40)).astype("f4")
    return float(upconv.conv_transpose(x, np.ones((64, 32, 4, 4), "f4"), stride=2, padding=1).sum())

if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    here = [work(s) for s in range(4)]
    with multiprocessing.get_context({start!r}).Pool(2) as pool:
        print(pool.map(work, range(4)) == here)
"""
    )
    done = child(str(script), timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr
