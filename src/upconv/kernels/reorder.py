"""Reordering: arrays from channels-first to channels-last and back, by squares transposed in registers.

Fewer channels than lanes, as pictures have, are woven: vectors of positions of one channel each, and as many of all channels.
"""

from __future__ import annotations

from math import ceil

from upconv.codegen.ir import SIZES, Function, Int, Value, lanes_of, module, vector
from upconv.codegen.target import LINE, Target
from upconv.kernels import job as jobs
from upconv.kernels.store import unweave, weave

NAME = "reorder"
SLOTS = jobs.Slots(("x", "y", "positions", "channels", "block", "block_count", "run"))
BLOCK = 256
"""Positions that a task takes."""
RUN, FAR, CHANNELS = 16, 1 << 19, (32, 256)
"""Positions that are gone over for all channels before the next, and the elements from which on, with so many channels, they are
all of a block: what lies in memory is read by longer runs of a few channels at a time. Measured: 1.4 and 1.25 times as fast to and
from channels-last for 48 to 192 channels, slower for small arrays and for more channels, whose positions lie pages apart."""


def few(element: str, channels: int, target: Target) -> int:
    """The channels where they are fewer than lanes: code is made for their number. Else 0."""
    return channels if channels < target.lanes(SIZES[element]) else 0


def emit(element: str, to_last: bool, target: Target, few: int) -> str:
    """The module's IR text; its entry is `entry(job)`, a task reorders a block of positions of one image.

    x is [image][channel][position] and y [image][position][channel], or the other way round. A square, or vectors of a `few`
    channels, that would pass the end of either are moved back onto elements that are written twice; where there is no room for
    them, elements are copied one by one.
    """
    lanes = target.lanes(SIZES[element])
    do_part = emit_part(element, lanes, to_last, few, max(1, LINE // (lanes * SIZES[element])))  # whole cache lines

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        del workspace
        s = {name: SLOTS.read(f, job, name) for name in SLOTS.names[len(jobs.COMMON) + 2 :]}
        positions, channels = s["positions"], s["channels"]
        image, at = number // s["block_count"] * positions * channels, number % s["block_count"] * s["block"]
        x, y = (SLOTS.pointer(f, job, name, element)[image] for name in ("x", "y"))
        f.call(do_part, [x, y, positions, channels, s["run"], at, f.minimum(at + s["block"], positions)])

    return module([do_part, jobs.emit_entry("entry", SLOTS, task)])


def emit_part(element: str, lanes: int, to_last: bool, few: int = 0, squares: int = 1) -> Function:
    """`reorder(x, y, positions, channels, run, at, stop)`: positions at..stop-1 of an image, `squares` side by side along them."""
    pointers, names = ("x", "y"), ("x", "y", "positions", "channels", "run", "at", "stop")
    f = Function("reorder", [(n, "ptr" if n in pointers else "i64") for n in names], attributes="internal noinline nounwind")
    x, y, positions, channels, run, at, stop = f.arguments
    x, y, s = x.of(element), y.of(element), {"positions": positions, "channels": channels, "run": run}
    fits = (positions >= lanes) & (channels >= (few or lanes))
    with f.when(fits, name="vectors"):
        if few:
            _emit_woven(f, s, vector(element, lanes), few, to_last, x, y, at, stop)
        else:
            _emit_squares(f, s, vector(element, lanes), to_last, squares, x, y, at, stop)
    (x_channel, x_position), (y_channel, y_position) = _steps(s, to_last)
    with f.otherwise(fits, name="singly"), f.loop(at, stop, name="p") as p, f.loop(0, channels, name="c") as c:
        f.store(f.load(element, x[c * x_channel + p * x_position]), y[c * y_channel + p * y_position])
    return f


def _steps(s: dict[str, Value], to_last: bool) -> tuple[tuple[Int, Int], tuple[Int, Int]]:
    """Elements from a channel to the next, and from a position to the next, in x and in y."""
    first, last = (s["positions"], 1), (1, s["channels"])
    return (first, last) if to_last else (last, first)


def _emit_squares(
    f: Function, s: dict[str, Value], type_: str, to_last: bool, squares: int, x: Value, y: Value, at: Value, stop: Value
) -> None:
    """Reorders positions at..stop-1 by squares."""
    lanes = lanes_of(type_)
    (x_channel, x_position), (y_channel, y_position) = _steps(s, to_last)
    with (
        f.loop(at, stop, s["run"], name="run") as run,
        f.loop(0, s["channels"], lanes, name="c") as c,
        f.loop(run, f.minimum(run + s["run"], stop), squares * lanes, name="p") as p,
    ):
        channel = f.minimum(c, s["channels"] - lanes)
        for k in range(squares):
            position = f.minimum(p + k * lanes, s["positions"] - lanes)
            source = x[channel * x_channel + position * x_position]
            to = y[channel * y_channel + position * y_position]
            rows = [f.load(type_, source[i * (x_channel if to_last else x_position)]) for i in range(lanes)]
            for i, column in enumerate(weave(f, rows)):
                f.store(column, to[i * (y_position if to_last else y_channel)])


def _emit_woven(
    f: Function, s: dict[str, Value], type_: str, few: int, to_last: bool, x: Value, y: Value, at: Value, stop: Value
) -> None:
    """Reorders positions at..stop-1 of a few channels, a vector of positions at a time."""
    lanes = lanes_of(type_)
    with f.loop(at, stop, lanes, name="p") as p:
        position = f.minimum(p, s["positions"] - lanes)
        apart, together = (x, y) if to_last else (y, x)
        rows = [apart[s["positions"] * c + position] for c in range(few)]
        pieces = [together[position * few + c * lanes] for c in range(few)]
        sources, places = (rows, pieces) if to_last else (pieces, rows)
        values = [f.load(type_, source) for source in sources]
        for value, place in zip(weave(f, values) if to_last else unweave(f, values), places, strict=True):
            f.store(value, place)


def bind(images: int, positions: int, channels: int) -> jobs.Bound:
    """The job's numbers for these sizes."""
    count = ceil(positions / BLOCK)
    far = CHANNELS[0] <= channels <= CHANNELS[1] and images * positions * channels >= FAR
    run = BLOCK if far else RUN
    slots = {"positions": positions, "channels": channels, "block": BLOCK, "block_count": count, "run": run, "workspace_bytes": 0}
    return jobs.Bound(slots, {}, images * count)
