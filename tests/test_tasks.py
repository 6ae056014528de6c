"""Which tasks of a job a thread draws, and in which order: by its seat, which is its processor's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from upconv.codegen import jit, threads
from upconv.codegen.ir import module
from upconv.codegen.target import host
from upconv.kernels import job as jobs


def seat(taken: int, seats: int) -> tuple[int, int]:
    """The seat that this thread gets, of so many, where some are taken, and which are then."""
    slots = jobs.Slots(("found",))

    def task(f, job, number, workspace):  # type: ignore[no-untyped-def]
        f.store(f.emit(f"ptrtoint ptr {workspace.text} to i64", "i64"), slots.pointer(f, job, "found", "i64"))

    code = jit.get("seat", "test", ("entry",), lambda: module([jobs.emit_entry("entry", slots, task)]), host())
    found = np.zeros(1, np.int64)
    job = jobs.filled(slots, {"taken": taken, "workspace_bytes": 1, "found": found.ctypes.data}, 1, seats)
    threads.run(code["entry"], job.ctypes.data, 1, host())
    return int(found[0]), int(job[jobs.TAKEN])


@contextmanager
def on(processor: int) -> Iterator[None]:
    """This thread, on that processor."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say which processor a thread runs on")
def test_a_processor_has_the_same_seat_in_every_call_where_it_is_free() -> None:
    for processor in sorted(os.sched_getaffinity(0))[:4]:
        with on(processor):
            for seats in (1, 2, 3, 63):
                own = processor % seats
                assert seat(0, seats) == (own, 1 << own)
                others = (1 << seats) - 1 ^ 1 << own
                assert seat(others, seats) == (own, others | 1 << own)


@pytest.mark.parametrize("free", [0, 1, 2, 5])
def test_where_its_seat_is_taken_a_thread_has_the_first_that_is_free(free: int) -> None:
    taken = 0b111111 ^ 1 << free
    assert seat(taken, 6) == (free, 0b111111)
    assert seat(0b011011 & taken, 6)[0] in {2, 5, free}


def test_a_job_that_says_nothing_of_seats_has_one() -> None:
    assert seat(0, 0) == (0, 1)
    assert seat(1, 0) == (1, 3), "who comes unexpected goes on counting"


def order(seat: int, front: int = 0, end: int = 0, **given: int) -> list[int]:
    """Tasks in the order that one thread draws them, having that seat, where some were drawn from the front and from the end."""
    slots = jobs.Slots(("drawn", "order", *given))

    def task(f, job, number, workspace):  # type: ignore[no-untyped-def]
        drawn, numbers = (slots.pointer(f, job, name, "i64") for name in ("drawn", "order"))
        so_far = f.load("i64", drawn)
        f.store(number, numbers[so_far])
        f.store(so_far + 1, drawn)

    write = lambda: module([jobs.emit_entry("entry", slots, task)])  # noqa: E731
    code = jit.get("order", f"test {[*given]}", ("entry",), write, host())
    drawn, numbers = np.zeros(1, np.int64), np.zeros(9, np.int64)
    given |= {"taken": 0b1111 ^ 1 << seat, "next": front + end * jobs.FROM_END}
    job = jobs.filled(slots, given | {"drawn": drawn.ctypes.data, "order": numbers.ctypes.data}, 9, 4)
    threads.run(code["entry"], job.ctypes.data, 1, host())
    return numbers[: drawn[0]].tolist()


def test_threads_draw_tasks_from_both_ends_and_shares_of_a_block_from_the_front() -> None:
    assert order(0) == order(2, splits=1) == list(range(9))
    assert order(1) == order(3, splits=1) == list(range(9))[::-1]
    assert order(0, front=2, end=3) == [2, 3, 4, 5]
    assert order(1, front=2, end=3) == [5, 4, 3, 2]
    assert order(0, front=4, end=5) == order(1, front=9) == order(1, end=9) == []
    assert order(1, splits=3) == order(0, splits=3) == order(1, splits=3, block_count=3) == list(range(9))
    assert order(1, splits=9, block_count=1) == order(1, splits=1, block_count=9) == list(range(9))[::-1]


def followers(blocks: int, abreast: int) -> list[int]:
    """The block after each of so many."""
    slots = jobs.Slots(("block_count", "abreast", "order"))

    def task(f, job, number, workspace):  # type: ignore[no-untyped-def]
        s = {name: slots.read(f, job, name) for name in ("block_count", "abreast")}
        f.store(jobs.following(number, s), slots.pointer(f, job, "order", "i64")[number])

    code = jit.get("following", "test", ("entry",), lambda: module([jobs.emit_entry("entry", slots, task)]), host())
    found = np.zeros(blocks, np.int64)
    job = jobs.filled(slots, {"block_count": blocks, "abreast": abreast, "order": found.ctypes.data}, blocks)
    threads.run(code["entry"], job.ctypes.data, 1, host())
    return found.tolist()


def test_a_thread_goes_on_with_the_next_block_of_its_end() -> None:
    assert followers(5, 1) == [1, 2, 3, 4, 5]
    assert followers(6, 2) == [1, 2, 3, 2, 3, 4]
    assert followers(8, 4) == [2, 3, 4, 5, 2, 3, 4, 5]
