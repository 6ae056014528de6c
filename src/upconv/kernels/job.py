"""What the host hands to emitted code: one array of 64-bit slots, and the loop that draws tasks from it.

Every kernel's entry is `entry(job)`. Any number of threads may call it with the same job: each takes a seat (its share of
the workspace) and draws task numbers from an atomic counter until none are left: every other seat from the last one down, so that
each goes on beside what its caches hold. A processor has the same seat in every call: weights that another has read last come from
far away. Measured, Emerald Rapids, 33 MB read by two threads again and again: 0.75 ms where each reads its half, 1.2 to 1.4 where
they change halves from call to call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from math import ceil
from operator import or_

import numpy as np
from numpy.typing import NDArray

from upconv.codegen import memory, system
from upconv.codegen.ir import Function, Value

NEXT, TASKS, TAKEN, SEATS, WORKSPACE, WORKSPACE_BYTES = range(6)
COMMON = ("next", "tasks", "taken", "seats", "workspace", "workspace_bytes")
FROM_END = 1 << 32
"""What a task drawn from the end counts in `next`, where one from the front counts 1."""


class Slots:
    """Named slots behind the common ones; loads them inside emitted code and numbers them for the host."""

    def __init__(self, names: Sequence[str]):
        self.names = (*COMMON, *names)
        self.index = {name: i for i, name in enumerate(self.names)}

    def read(self, f: Function, job: Value, name: str) -> Value:
        """The slot as an integer."""
        return f.load("i64", job.of("i64")[self.index[name]])

    def pointer(self, f: Function, job: Value, name: str, element: str = "float") -> Value:
        """The slot as a pointer to `element`."""
        return f.load_pointer(job.of("i64")[self.index[name]], element)


Task = Callable[[Function, Value, Value, Value], None]


def emit_entry(name: str, slots: Slots, task: Task) -> Function:
    """`entry(job)`: draws tasks; `task(f, job, number, workspace)` writes the code of one."""
    f = Function(name, [("job", "ptr")])
    job = f.arguments[0].of("i64")
    seat = emit_seat(f, job)
    workspace = emit_workspace(f, job, slots, seat)
    with emit_tasks(f, job, slots, seat) as number:
        task(f, job, number, workspace)
    return f


def emit_seat(f: Function, job: Value) -> Value:
    """A thread's number among `seats`: its processor's, if that is free, else the first that is. `taken` has a bit for each."""
    seat, other, seats = system.word(f), system.word(f), f.load("i64", job[SEATS])
    f.store(f.value(0), seat)
    f.store(f.value(0), other)
    with f.when(seats > 1, name="several"):
        f.store(system.processor(f) % seats, seat)

    def is_taken() -> Value:
        bit = f.emit(f"shl i64 1, {f.load('i64', seat).text}", "i64")
        before = f.emit(f"atomicrmw or ptr {job[TAKEN].text}, i64 {bit.text} monotonic, align 8", "i64")
        return (before & bit).equals(bit)

    def try_another() -> None:
        following = f.load("i64", other)
        f.store(following, seat)
        f.store(following + 1, other)

    system.wait(f, is_taken, try_another)
    return f.load("i64", seat)


def emit_workspace(f: Function, job: Value, slots: Slots, seat: Value) -> Value:
    """The workspace of the thread of that number."""
    return slots.pointer(f, job, "workspace", "i8")[seat * slots.read(f, job, "workspace_bytes")]


@contextmanager
def emit_tasks(f: Function, job: Value, slots: Slots, seat: Value) -> Iterator[Value]:
    """Runs the body for every task that a thread draws, until none is left.

    Threads draw them from both ends: a task reads rows that its neighbour has read, and in a layer's next call a thread finds its
    part where it left it. 1.02 to 1.07 times as fast for Winograd of few output channels, 1.01 over 108 layers. Shares of several
    blocks are drawn from the front by all: in opposite order two threads do not read the same weights at the same time, and six
    vocoders and codecs took 0.89 to 0.94 of the speed. What a thread did before it drew a task is seen by all who draw after it
    (`helping`).
    """
    count = slots.read(f, job, "tasks")
    from_end = (seat % 2).equals(1)
    if "splits" in slots.index:
        alone = [slots.read(f, job, name) < 2 for name in ("splits", "block_count") if name in slots.index]
        from_end = from_end & reduce(or_, alone)
    one = f.select(from_end, FROM_END, 1)
    draw, work, done = f.label("draw"), f.label("task"), f.label("done")
    f.do(f"br label %{draw}")
    f.start(draw)
    drawn = f.emit(f"atomicrmw add ptr {job[NEXT].text}, i64 {one.text} acq_rel, align 8", "i64")
    front, end = drawn % FROM_END, drawn // FROM_END
    f.do(f"br i1 {(front + end < count).text}, label %{work}, label %{done}")
    f.start(work)
    yield f.select(from_end, count - 1 - end, front)
    f.do(f"br label %{draw}")
    f.start(done)


PLACE = ("block_count", "splits", "abreast")
"""The slots that say where a task's number belongs."""


def place_of(number: Value, s: dict[str, Value]) -> tuple[Value, Value, Value]:
    """A task's block, its share of the chunks and its group of channels, by its number and the slots' values.

    So many blocks are taken `abreast`, share by share, before the next ones: as many threads stay with a block each.
    """
    of_group = s["block_count"] * s["splits"]
    group, rest = number // of_group, number % of_group
    first = rest // (s["abreast"] * s["splits"]) * s["abreast"]
    rest, abreast = rest - first * s["splits"], number.function.minimum(s["abreast"], s["block_count"] - first)
    return first + rest % abreast, rest // abreast, group


def share_of(split: Value, chunks_a_split: Value, chunks: Value) -> tuple[Value, Value]:
    """(first chunk of a block's share, its chunks), by the share's number."""
    first = split * chunks_a_split
    return first, split.function.minimum(chunks - first, chunks_a_split)


def following(block: Value, s: dict[str, Value]) -> Value:
    """The block that a thread draws after this one, where blocks are not shared; there may be none of that number.

    Half of the threads that draw blocks `abreast` come from the front, and half from the end; one thread alone from the front.
    """
    f, many, half = block.function, s["abreast"], (s["abreast"] + 1) // 2
    return f.select((block * 2 < s["block_count"]) | (many < 2), block + half, block - half)


def prepared(blocks: int, splits: int, threads: int) -> float:
    """How often a block is prepared, in the mean, whose chunks are shared, of blocks that are taken abreast by so many threads.

    Of the last blocks, which are fewer, a thread stays with one if as many threads have each of them.

    >>> prepared(1, 8, 2), prepared(1, 1, 2), prepared(4, 3, 2), prepared(3, 4, 2), prepared(3, 4, 4)
    (2.0, 1.0, 1.0, 1.3333333333333333, 4.0)
    """
    last = blocks % threads
    often = threads // last if last and threads % last == 0 else splits
    return (blocks - last + last * min(splits, often)) / blocks


def shares(chunks: int, parts: int, threads: int, most: int) -> int:
    """Into how many shares to cut the chunks of each of `parts` equal parts: about `most` tasks a thread.

    Fewer, even if equal, leave no task for the thread that is done first where the other is held up. Measured: one task a
    thread in place of three costs Winograd 12 % of 1024 -> 256, k4s2, on 16 x 16.

    >>> shares(9, 1, 2, 4), shares(16, 1, 2, 4), shares(16, 100, 2, 4)
    (5, 8, 1)
    """
    wanted = max(1, min(chunks, ceil(most * threads / parts)))
    return ceil(chunks / ceil(chunks / wanted))


def busiest(tasks: Sequence[tuple[int, float]], threads: int) -> float:
    """The time of the thread that has most to do, of (count, time) of tasks that are taken one by one, longer ones first.

    >>> busiest([(5, 2.0), (1, 1.0)], 2), busiest([(10, 1.0), (2, 0.5)], 2)
    (6.0, 5.5)
    """
    loads = [0.0] * threads
    for count, time in sorted(tasks, key=lambda task: -task[1]):
        each, rest = divmod(count, threads)
        loads = sorted(load + each * time for load in loads)
        loads[:rest] = [load + time for load in loads[:rest]]
    return max(loads)


def busiest_share(tasks: Sequence[tuple[int, float]], threads: int) -> float:
    """The share of all work that the busiest thread has: see `busiest`.

    >>> busiest_share([(4, 1.0)], 2), busiest_share([(5, 1.0)], 2)
    (0.5, 0.6)
    """
    return busiest(tasks, threads) / sum(count * time for count, time in tasks)


def helped(tasks: Sequence[tuple[int, float]], pieces: int, threads: int) -> float:
    """The time of the thread that is done last where those that are done first help with tasks in so many pieces (see `helping`).

    A piece of the longest task is what they wait for.

    >>> helped([(5, 2.0)], 1, 2), helped([(5, 2.0)], 4, 2), helped([(1, 4.0)], 1, 2)
    (6.0, 5.25, 4.0)
    """
    longest = max(time for _, time in tasks)
    even = sum(count * time for count, time in tasks) / threads
    return min(busiest(tasks, threads), even + longest / pieces * (threads - 1) / threads)


def helped_share(tasks: Sequence[tuple[int, float]], pieces: int, threads: int) -> float:
    """The share of all work that the thread which is done last has: see `helped`."""
    return helped(tasks, pieces, threads) / sum(count * time for count, time in tasks)


def held_up(tasks: int, threads: int) -> float:
    """How many times as long so few tasks take: fewer than three a thread leave none to give away where a thread is held up.

    One a thread instead of three costs 12 % of 1024 -> 256, k4s2, on 16 x 16.
    """
    return 1 + 0.03 * max(0.0, 3.0 - tasks / threads) ** 2


def tasks_of(sizes: Sequence[tuple[int, float]], chunks: int, splits: int, again: float) -> list[tuple[int, float]]:
    """(count, time) of tasks, from those of blocks, whose chunks are shared; each share takes the part `again` as well.

    >>> tasks_of([(3, 2.0), (1, 1.0)], 3, 2, 0.25)
    [(3, 1.8333333333333333), (3, 1.1666666666666665), (1, 0.9166666666666666), (1, 0.5833333333333333)]
    """
    each = ceil(chunks / splits)
    shares = ((splits - 1, each), (1, chunks - each * (splits - 1)))
    return [(count * n, time * (share / chunks + again)) for count, time in sizes for n, share in shares if n]


@dataclass(frozen=True, slots=True)
class Bound:
    """What a call hands to the code besides the arrays' addresses: numbers, tables and the count of tasks."""

    slots: dict[str, int]
    tables: dict[str, NDArray[np.int64]]
    tasks: int


def filled(slots: Slots, numbers: dict[str, int], tasks: int, threads: int = 1) -> NDArray[np.int64]:
    """The memory of a job with these numbers (and addresses), on a line of the cache; at most so many threads will come."""
    job = _room(len(slots.names))
    job[:] = 0
    for name, number in {**numbers, "tasks": tasks, "seats": threads}.items():
        job[slots.index[name]] = number
    return job


def again(job: NDArray[np.int64]) -> NDArray[np.int64]:
    """A job with the same numbers, for another call."""
    copy = _room(job.size)
    copy[:] = job
    return copy


def _room(count: int) -> NDArray[np.int64]:
    room = np.empty(count + 8, np.int64)
    return room[-memory.address(room) % 64 // 8 :][:count]
