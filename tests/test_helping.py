"""Tasks in pieces: each piece is worked on once, from what its block's thread has prepared, whoever comes to do it."""

from __future__ import annotations

import numpy as np
import pytest

from upconv.codegen import jit, system, threads
from upconv.codegen.ir import Function, Value, module
from upconv.codegen.target import host
from upconv.kernels import helping
from upconv.kernels import job as jobs

SLOTS = jobs.Slots((*helping.OPEN, *jobs.PLACE, "pieces", "rests", "prepared", "done", "seen", "owner"))
ROOM = 8
"""Words of a workspace: the first says which block it is prepared for, the second whose it is."""


def emit() -> str:
    """Code whose blocks say which they are in the workspace, and whose pieces note what they find there."""

    def number_of(f: Function, job: Value, number: Value) -> Value:
        block, _, group = jobs.place_of(number, {name: SLOTS.read(f, job, name) for name in jobs.PLACE})
        return group * SLOTS.read(f, job, "block_count") + block

    def prepare(f: Function, job: Value, number: Value, workspace: Value) -> None:
        block = number_of(f, job, number)
        counter = SLOTS.pointer(f, job, "prepared", "i64")[block]
        f.emit(f"atomicrmw add ptr {counter.text}, i64 1 monotonic, align 8", "i64")
        f.store(block, workspace.of("i64"))

    def count(f: Function, job: Value, number: Value) -> Value:
        return SLOTS.read(f, job, "pieces")

    def work(f: Function, job: Value, number: Value, rooms: helping.Rooms, helps: Value, word: Value) -> None:
        every = SLOTS.read(f, job, "pieces")
        with helping.emit_pieces(f, word, every) as piece:
            with f.loop(0, SLOTS.read(f, job, "rests")):
                system.rest(f)
            at = number * every + piece
            counter = SLOTS.pointer(f, job, "done", "i64")[at]
            f.emit(f"atomicrmw add ptr {counter.text}, i64 1 monotonic, align 8", "i64")
            right = f.load("i64", rooms.prepared.of("i64")).equals(number_of(f, job, number))
            f.store(f.select(right, 1, 0), SLOTS.pointer(f, job, "seen", "i64")[at])
            f.store(f.load("i64", rooms.own.of("i64")[1]) * 2 + helps, SLOTS.pointer(f, job, "owner", "i64")[at])

    return module(helping.emit_entry("entry", SLOTS, helping.Pieces(prepare, count, work)))


class Run:
    """A job of `blocks` in `splits` tasks of `pieces` each, on `count` threads: how often, from what, and by whom each was done."""

    def __init__(self, blocks: int, splits: int, pieces: int, count: int, groups: int = 1, rests: int = 0, **slots: int):
        code = jit.get("pieces", "test", ("entry",), emit, host())
        tasks = blocks * splits * groups
        self.prepared = np.zeros(blocks * groups, np.int64)
        self.done, self.seen, self.owner = (np.zeros((tasks, pieces), np.int64) for _ in range(3))
        self.rooms = np.full((max(count, 2), ROOM), -1)
        self.rooms[:, 1] = np.arange(max(count, 2))
        arrays = {"prepared": self.prepared, "done": self.done, "seen": self.seen, "owner": self.owner, "workspace": self.rooms}
        numbers = {name: array.ctypes.data for name, array in arrays.items()}
        numbers |= {"block_count": blocks, "splits": splits, "abreast": count, "pieces": pieces, "rests": rests}
        self.job = jobs.filled(SLOTS, numbers | {"workspace_bytes": 8 * ROOM}, tasks, count)
        for name, number in slots.items():
            self.job[SLOTS.index[name]] = number
        self.entry, self.count = code["entry"], count

    def __call__(self) -> Run:
        threads.run(self.entry, self.job.ctypes.data, self.count, host())
        return self

    @property
    def helped(self) -> int:
        """Pieces that another thread did than the one whose task they were."""
        return int((self.owner % 2).sum())


@pytest.mark.parametrize(("blocks", "splits", "pieces", "groups"), [(1, 1, 40, 1), (3, 2, 5, 2), (7, 1, 3, 1), (1, 9, 1, 3)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_piece_is_done_once_from_its_own_block(blocks: int, splits: int, pieces: int, groups: int, count: int) -> None:
    for _ in range(50):
        run = Run(blocks, splits, pieces, count, groups)()
        assert (run.done == 1).all()
        assert (run.seen == 1).all()


def test_the_same_job_runs_again_and_again() -> None:
    run = Run(3, 1, 4, 2)
    for turn in range(1, 200):
        run.job[jobs.NEXT] = run.job[jobs.TAKEN] = 0
        run.rooms[:, 0] = -1
        assert (run().done == turn).all()
        assert (run.seen == 1).all()


def test_a_thread_prepares_its_block_once_for_all_shares_that_it_draws_in_turn() -> None:
    assert Run(1, 9, 2, 1)().prepared.tolist() == [1]
    assert Run(1, 9, 2, 1, groups=3)().prepared.tolist() == [1, 1, 1]
    assert Run(3, 4, 2, 1)().prepared.tolist() == [1, 1, 1]
    for _ in range(50):
        assert 1 <= Run(1, 9, 1, 2)().prepared[0] <= 2
        assert Run(3, 4, 1, 2, groups=2)().prepared.max() <= 4
        assert Run(5, 2, 1, 3, groups=2)().prepared.max() <= 2


def late(state: int, block: int = -1, **slots: int) -> Run:
    """A thread that comes second, when no task is left, and the first has opened one: what it does of it, whose block it has."""
    run = Run(2, 2, 6, 1, next=4, taken=1, seats=2, open_0=state, **slots)
    run.rooms[0, 0] = block
    return run()


def test_a_thread_that_finds_no_task_does_what_is_left_of_an_opened_one() -> None:
    run = late(3 * helping.TASK + 2, block=1)  # the third task, that of the second block, of which two pieces are taken
    assert run.done.tolist() == [[0] * 6, [0] * 6, [0, 0, 1, 1, 1, 1], [0] * 6]
    assert run.helped == 4
    assert set(run.owner[2, 2:] // 2) == {1}, "its own workspace, besides what is prepared"
    assert run.seen[2, 2:].tolist() == [1] * 4, "what the first thread has prepared"
    assert run.prepared.sum() == 0


@pytest.mark.parametrize("state", [0, 3 * helping.TASK + 6, 3 * helping.TASK + 9], ids=["nothing", "all taken", "more than all"])
def test_it_leaves_what_is_not_open(state: int) -> None:
    assert late(state).done.sum() == 0


def test_it_does_not_wait_for_ever_for_a_task_that_is_being_prepared() -> None:
    assert late(3 * helping.TASK + helping.COMING).done.sum() == 0


@pytest.mark.skipif(threads.available() < 2, reason="one processor")
def test_threads_help_where_tasks_are_too_few() -> None:
    """One task of 2 ms or more: the other thread wakes up in a tenth of that."""
    helped = [Run(1, 1, 64, 2, rests=1000)().helped for _ in range(20)]
    assert max(helped) > 8
