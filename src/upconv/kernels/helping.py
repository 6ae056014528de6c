"""Tasks in pieces: a thread that finds no task left helps the others with theirs.

Processors are shared, and of two threads that have as much to do one is often done when the other still has a tenth or a fifth of
it to do. More tasks would even that out, but each prepares what its pieces have in common: a block's columns or transformed input.
So a thread opens its task to others: a word in the job says which task it is and which piece comes next, and whoever has time
draws pieces from it, reading what is prepared where the thread that opened it has it.

Others help only when they have found no task left to draw. Whoever works then has drawn its last one, which it did when the one
before had no piece left. So the pieces that others come to draw are of last tasks, after which a thread prepares nothing: what
they read stays as it is.

The idea is that of work stealing (Blumofe and Leiserson, "Scheduling Multithreaded Computations by Work Stealing", 1999), of parts
of what a thread is doing in place of what it has yet to begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from upconv.codegen import system
from upconv.codegen.ir import Function, Value
from upconv.codegen.threads import MOST_THREADS
from upconv.kernels import job as jobs

OPEN = tuple(f"open_{thread}" for thread in range(MOST_THREADS))
"""Slots of what each thread has opened: one more than the task's number, and the number of the next piece. 0 before anything."""
TASK, COMING = 1 << 32, 1 << 31
"""What counts a task in such a word, and what marks one that is not prepared yet."""
PATIENCE = 20_000
"""How often a thread looks whether a task that another prepares can be helped with: for a millisecond or so."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """The memory of a thread that works on a task: its own, and that of the thread which prepared the task's block."""

    own: Value
    prepared: Value


@dataclass(frozen=True, slots=True)
class Pieces:
    """What a kernel writes of such a task: what its block has in common, how many pieces it has, and the work on them.

    `work(f, job, number, rooms, helps, word)` goes over the pieces that `emit_pieces` draws from the word.
    """

    prepare: jobs.Task
    count: Callable[[Function, Value, Value], Value]
    work: Callable[[Function, Value, Value, Rooms, Value, Value], None]


def chunks_of(slots: jobs.Slots, chunks: str = "chunks") -> Callable[[Function, Value, Value], Value]:
    """The pieces of a task that are the chunks of its share of a block, of which there are as many as that slot says."""

    def count(f: Function, job: Value, number: Value) -> Value:
        s = {name: slots.read(f, job, name) for name in (*jobs.PLACE, "chunks_a_split", chunks)}
        return jobs.share_of(jobs.place_of(number, s)[1], s["chunks_a_split"], s[chunks])[1]

    return count


def emit_entry(name: str, slots: jobs.Slots, pieces: Pieces) -> list[Function]:
    """`entry(job)`, and what it calls. `slots` begin with `OPEN`, and have those of `job.PLACE`.

    What shares of one block have in common is prepared by a thread when it draws the first of them, and found by it with those that
    it draws after it.
    """
    do_work = _emit_work(pieces)
    f = Function(name, [("job", "ptr")])
    job = f.arguments[0].of("i64")
    seat = jobs.emit_seat(f, job)
    words, own = job[slots.index[OPEN[0]]], jobs.emit_workspace(f, job, slots, seat)
    word = words[seat]
    ready, looks = system.word(f), system.word(f)
    f.store(f.value(-1), ready)
    with jobs.emit_tasks(f, job, slots, seat) as number:
        system.store(f, (number + 1) * TASK + COMING, word)
        block = _emit_block(f, job, slots, number)
        with f.otherwise(block.equals(f.load("i64", ready)), name="block"):
            pieces.prepare(f, job, number, own)
            f.store(block, ready)
        system.store(f, (number + 1) * TASK, word)
        f.call(do_work, [job, number, own, own, 0, word])
    with f.loop(0, slots.read(f, job, "seats"), name="other") as other:
        state = _emit_opened(f, words[other], looks)
        number = state // TASK - 1
        with f.when(number >= 0, name="opened"), f.when(state % TASK < pieces.count(f, job, number), name="help"):
            same = _emit_block(f, job, slots, number).equals(f.load("i64", ready))
            theirs = jobs.emit_workspace(f, job, slots, f.select(same, seat, other))
            f.call(do_work, [job, number, own, theirs, 1, words[other]])
    return [do_work, f]


def _emit_work(pieces: Pieces) -> Function:
    """`work(job, number, own, prepared, helps, word)`: all pieces of a task that this thread comes to draw."""
    names = ("job", "number", "own", "prepared", "helps", "word")
    parameters = [(n, "i64" if n in ("number", "helps") else "ptr") for n in names]
    f = Function("work", parameters, attributes="internal noinline nounwind")
    job, number, own, prepared, helps, word = f.arguments
    pieces.work(f, job.of("i64"), number, Rooms(own.of("i8"), prepared.of("i8")), helps, word)
    return f


def _emit_block(f: Function, job: Value, slots: jobs.Slots, number: Value) -> Value:
    """A task's block, of all groups."""
    s = {slot: slots.read(f, job, slot) for slot in jobs.PLACE}
    block, _, group = jobs.place_of(number, s)
    return group * s["block_count"] + block


def _emit_opened(f: Function, word: Value, looks: Value) -> Value:
    """What a thread has opened; waits a while where it is about to, counting its `looks`."""
    f.store(f.value(0), looks)

    def busy() -> Value:
        coming = (system.load(f, word) % TASK) >= COMING
        return coming & (f.load("i64", looks) < PATIENCE)

    def meanwhile() -> None:
        system.rest(f)
        f.store(f.load("i64", looks) + 1, looks)

    system.wait(f, busy, meanwhile)
    return system.load(f, word)


@contextmanager
def emit_pieces(f: Function, word: Value, count: Value) -> Iterator[Value]:
    """Runs the body for every piece of `count` that this thread draws from the word."""
    draw, work, done = f.label("draw"), f.label("piece"), f.label("drawn")
    f.do(f"br label %{draw}")
    f.start(draw)
    piece = f.emit(f"atomicrmw add ptr {word.text}, i64 1 seq_cst, align 8", "i64") % TASK
    f.do(f"br i1 {(piece < count).text}, label %{work}, label %{done}")
    f.start(work)
    yield piece
    f.do(f"br label %{draw}")
    f.start(done)
