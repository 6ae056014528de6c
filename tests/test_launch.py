"""The call of a kernel: CPython's own and ctypes' fill and run the same job, and bad calls run none."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upconv.codegen import jit, launch, memory, threads
from upconv.codegen.ir import Function, Value, module
from upconv.codegen.target import host
from upconv.kernels import job as jobs

SLOTS = jobs.Slots(("y", "extra", "bias", "weight", "x"))
NO_BIAS = np.array([7], np.int64)
WORKSPACE = np.array([1000], np.int64)


def _sum(f: Function, job: Value, number: Value, workspace: Value) -> None:
    """y[0] = x[0] + 10 * weight[0] + 100 * bias[0] + workspace[0] + y[0]"""
    x, weight, bias, y = (SLOTS.pointer(f, job, name, "i64") for name in ("x", "weight", "bias", "y"))
    total = f.load("i64", x) + f.load("i64", weight) * 10 + f.load("i64", bias) * 100 + f.load("i64", workspace) + f.load("i64", y)
    f.store(total, y)


def _wait(f: Function, job: Value, number: Value, workspace: Value) -> None:
    """Looks at x[0] for as long as it is 0, a second or so at most, then copies it to y[0]."""
    x, y = (SLOTS.pointer(f, job, name, "i64") for name in ("x", "y"))
    look, again, done = f.label("look"), f.label("again"), f.label("done")
    f.do(f"br label %{look}")
    before = f.block
    f.start(look)
    turn = f.emit(f"phi i64 [ 0, %{before} ], [ %next, %{again} ]", "i64")
    seen = f.emit(f"load atomic i64, ptr {x.text} seq_cst, align 8", "i64")
    f.do(f"br i1 {seen.equals(0).text}, label %{again}, label %{done}")
    f.start(again)
    f.do(f"%next = add i64 {turn.text}, 1")
    f.do(f"br i1 {turn.equals(1 << 30).text}, label %{done}, label %{look}")
    f.start(done)
    f.store(seen, y)


def entry(task: Any) -> int:
    return jit.get(task.__name__, "launch", ("entry",), lambda: module([jobs.emit_entry("entry", SLOTS, task)]), host())["entry"]


def launcher(native: bool, address: int, alone: bool = True) -> launch.Launch:
    if not native:
        return launch.by_ctypes(address, SLOTS.index, NO_BIAS.ctypes.data, alone)
    made = launch.launcher(address, SLOTS.index, NO_BIAS.ctypes.data, host(), alone)
    assert (type(made).__name__ == "builtin_function_or_method") == (sys.implementation.name == "cpython")
    return made


@pytest.fixture(params=[True, False], ids=["as CPython's own", "by ctypes"])
def native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Arrays:
    """A job of one task, and what it is given."""

    def __init__(self) -> None:
        self.job = jobs.filled(SLOTS, {"extra": 5, "next": 9, "taken": 9, "workspace_bytes": 0}, 1)
        self.x, self.weight, self.bias, self.y = (np.array([n, -1], np.int64) for n in (1, 2, 3, 0))

    def call(self, run: launch.Launch, *given: Any, team: int = 0) -> None:
        run(self.job.ctypes.data, WORKSPACE.ctypes.data, *(given or (self.x, self.weight, self.bias, self.y)), team)

    def filled(self, *names: str) -> list[int]:
        return [int(self.job[SLOTS.index[name]]) for name in names]


def test_a_job_is_filled_and_run(native: bool) -> None:
    a, run = Arrays(), launcher(native, entry(_sum))
    for turn in (1, 2):  # the counter of tasks begins anew
        a.call(run)
        assert a.y.tolist() == [1321 * turn, -1]
    assert a.filled("next", "taken", "tasks", "extra") == [2, 1, 1, 5]
    assert a.filled("x", "weight", "bias", "y") == [v.ctypes.data for v in (a.x, a.weight, a.bias, a.y)]
    assert a.filled("workspace") == [WORKSPACE.ctypes.data]


def test_a_bias_of_none_is_the_one_named(native: bool) -> None:
    a = Arrays()
    a.call(launcher(native, entry(_sum)), a.x, a.weight, None, a.y)
    assert a.y.tolist() == [1721, -1]


def test_an_address_does_for_an_array(native: bool, tmp_path: Path) -> None:
    a, run = Arrays(), launcher(native, entry(_sum))
    a.call(run, a.x.ctypes.data, a.weight, a.bias.ctypes.data, a.y.ctypes.data)
    assert a.y.tolist() == [1321, -1]
    kept = np.memmap(tmp_path / "x", np.int64, "w+", shape=(2,))  # of a class of its own
    kept[:] = 4
    a.call(run, kept, a.weight, a.bias, a.y)
    assert a.y.tolist() == [2645, -1]


def test_without_a_team_what_is_not_for_one_thread_is_filled_only(native: bool) -> None:
    a = Arrays()
    a.call(launcher(native, entry(_sum), alone=False))
    assert a.filled("next", "taken", "x", "y") == [0, 0, a.x.ctypes.data, a.y.ctypes.data]
    assert a.y.tolist() == [0, -1]


def _mark(f: Function, job: Value, number: Value, workspace: Value) -> None:
    """y[number] += x[0]"""
    x, y = (SLOTS.pointer(f, job, name, "i64") for name in ("x", "y"))
    f.store(f.load("i64", y[number]) + f.load("i64", x), y[number])


@pytest.mark.parametrize("alone", [True, False])
def test_a_team_runs_every_task_once(native: bool, alone: bool) -> None:
    pytest.importorskip("torch")
    team = threads._team(2, host())
    if not team:
        pytest.skip("PyTorch has no OpenMP runtime here")
    assert threads.teams[2] == team == threads._team(2, host())
    a, run = Arrays(), launcher(native, entry(_mark), alone)
    a.job, a.y = jobs.filled(SLOTS, {"workspace_bytes": 0}, 500), np.zeros(500, np.int64)
    a.x[0] = 3
    for turn in range(1, 4):
        a.call(run, a.x, a.weight, None, a.y, team=team)
        assert (a.y == 3 * turn).all()


BIAS = 2


@pytest.mark.parametrize("wrong", [None, "x", [1, 2], 1.5], ids=repr)
@pytest.mark.parametrize("place", [0, 1, BIAS, 3])
def test_what_is_neither_array_nor_number_runs_nothing(wrong: Any, place: int) -> None:
    if place == BIAS and wrong is None:
        pytest.skip("a bias may be None")
    a, run = Arrays(), launcher(True, entry(_sum))
    given: list[Any] = [a.x, a.weight, a.bias, a.y]
    given[place] = wrong
    before = a.job.copy()
    with pytest.raises(TypeError):
        a.call(run, *given)
    assert (a.job == before).all()
    assert a.y.tolist() == [0, -1]


def test_a_wrong_count_of_arguments_runs_nothing() -> None:
    a, run = Arrays(), launcher(True, entry(_sum))
    for given in ((a.x,), (a.x, a.weight, None, a.y, a.y)):
        with pytest.raises((SystemError, TypeError)):
            a.call(run, *given)
    with pytest.raises((SystemError, TypeError)):
        a.call(run, a.x, a.weight, None, a.y, team="2")  # type: ignore[arg-type]
    with pytest.raises((SystemError, TypeError)):
        run()  # type: ignore[call-arg]
    assert a.y.tolist() == [0, -1]


def test_references_are_as_before() -> None:
    a, run = Arrays(), launcher(True, entry(_sum))
    objects = (None, a.x, a.weight, a.y)
    before = [sys.getrefcount(o) for o in objects]
    for _ in range(1000):
        a.call(run, a.x, a.weight, None, a.y)
    after = [sys.getrefcount(o) for o in objects]
    assert after[1:] == before[1:]
    assert abs(after[0] - before[0]) < 100


def test_other_threads_run_meanwhile(native: bool) -> None:
    a, run = Arrays(), launcher(native, entry(_wait))
    a.x[0] = 0
    setter = threading.Timer(0.05, lambda: a.x.__setitem__(0, 42))
    setter.start()
    a.call(run)
    setter.join()
    assert a.y.tolist() == [42, -1]


def test_where_objects_look_otherwise_ctypes_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name, other in ((launch, "_BYTES", 1), (launch, "_HEADER", 24), (memory, "address", memory.address_by_attribute)):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, other)
            a = Arrays()
            run = launch.launcher(entry(_sum), SLOTS.index, NO_BIAS.ctypes.data, host())
            assert type(run).__name__ == "function"
            a.call(run)
            assert a.y.tolist() == [1321, -1]
