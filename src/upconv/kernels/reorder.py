"""Reordering: arrays from channels-first to channels-last and back, by squares transposed in registers."""

from __future__ import annotations

from math import ceil

from upconv.codegen.ir import SIZES, Function, Value, module, vector
from upconv.codegen.target import LINE, Target
from upconv.kernels import job as jobs
from upconv.kernels.store import weave

NAME = "reorder"
SLOTS = jobs.Slots(("x", "y", "positions", "channels", "block", "block_count", "run"))
BLOCK = 256
"""Positions that a task takes."""
RUN, FAR, CHANNELS = 16, 1 << 19, (32, 256)
"""Positions that are gone over for all channels before the next, and the elements from which on, with so many channels, they are
all of a block: what lies in memory is read by longer runs of a few channels at a time. Measured: 1.4 and 1.25 times as fast to and
from channels-last for 48 to 192 channels, slower for small arrays and for more channels, whose positions lie pages apart."""


def emit(element: str, to_last: bool, target: Target) -> str:
    """The module's IR text; its entry is `entry(job)`, a task reorders a block of positions of one image.

    x is [image][channel][position] and y [image][position][channel], or the other way round. A square whose rows would pass
    the end of either is moved back onto elements that are written twice; where there is no room for a square, elements are
    copied one by one.
    """
    lanes = target.lanes(SIZES[element])
    type_ = vector(element, lanes)
    squares = max(1, LINE // (lanes * SIZES[element]))  # side by side along the positions: whole cache lines

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        del workspace
        s = {name: SLOTS.read(f, job, name) for name in SLOTS.names[len(jobs.COMMON) + 2 :]}
        positions, channels = s["positions"], s["channels"]
        image, at = number // s["block_count"] * positions * channels, number % s["block_count"] * s["block"]
        x, y = (SLOTS.pointer(f, job, name, element)[image] for name in ("x", "y"))
        stop = f.minimum(at + s["block"], positions)
        steps = (positions, 1), (1, channels)  # of a channel and a position, channels first and last
        (x_channel, x_position), (y_channel, y_position) = steps if to_last else steps[::-1]
        fits = (positions >= lanes) & (channels >= lanes)
        with (
            f.when(fits, name="squares"),
            f.loop(at, stop, s["run"], name="run") as run,
            f.loop(0, channels, lanes, name="c") as c,
            f.loop(run, f.minimum(run + s["run"], stop), squares * lanes, name="p") as p,
        ):
            channel = f.minimum(c, channels - lanes)
            for k in range(squares):
                position = f.minimum(p + k * lanes, positions - lanes)
                source = x[channel * x_channel + position * x_position]
                to = y[channel * y_channel + position * y_position]
                rows = [f.load(type_, source[i * (x_channel if to_last else x_position)]) for i in range(lanes)]
                for i, column in enumerate(weave(f, rows)):
                    f.store(column, to[i * (y_position if to_last else y_channel)])
        with f.otherwise(fits, name="singly"), f.loop(at, stop, name="p") as p, f.loop(0, channels, name="c") as c:
            f.store(f.load(element, x[c * x_channel + p * x_position]), y[c * y_channel + p * y_position])

    return module([jobs.emit_entry("entry", SLOTS, task)])


def bind(images: int, positions: int, channels: int) -> jobs.Bound:
    """The job's numbers for these sizes."""
    count = ceil(positions / BLOCK)
    far = CHANNELS[0] <= channels <= CHANNELS[1] and images * positions * channels >= FAR
    run = BLOCK if far else RUN
    slots = {"positions": positions, "channels": channels, "block": BLOCK, "block_count": count, "run": run, "workspace_bytes": 0}
    return jobs.Bound(slots, {}, images * count)
