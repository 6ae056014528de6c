"""The bias gradient: each channel's sum over the batch and the positions, in a fixed order."""

from __future__ import annotations

from upconv.codegen.ir import SIZES, Carry, Function, Value, lanes_of, module, vector
from upconv.codegen.target import Target
from upconv.kernels import job as jobs

NAME = "bias_gradient"
SLOTS = jobs.Slots(("g", "out", "images", "image", "channel"))
STREAMS = 4  # sums kept apart, so that one addition need not wait for the other


def emit(element: str, target: Target) -> str:
    """The module's IR text; its entry is `entry(job)`, a task is a channel."""
    lanes = target.lanes(SIZES[element])
    type_ = vector(element, lanes)

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        images, image, channel = (SLOTS.read(f, job, name) for name in ("images", "image", "channel"))
        g, out = (SLOTS.pointer(f, job, name, element) for name in ("g", "out"))
        plane = g[number * channel]
        over_images = Carry([f.splat(0.0, type_)] * STREAMS)
        with f.loop(0, images, name="n", carry=over_images) as n:
            row = plane[n * image]
            wide = Carry([*over_images.values, f.value(0)])
            with f.loop(0, channel - (STREAMS * lanes - 1), STREAMS * lanes, name="wide", carry=wide) as i:
                sums = [f.fadd(s, f.load(type_, row[i + k * lanes])) for k, s in enumerate(wide.values[:-1])]
                wide.next = [*sums, i + STREAMS * lanes]
            rest = Carry([wide.results[0]])
            with f.loop(wide.results[-1], channel, lanes, name="rest", carry=rest) as i:
                mask = f.lanes_between(i, 0, channel, lanes)
                rest.next = [f.fadd(rest.values[0], f.masked_load(type_, row[i], mask))]
            over_images.next = [*rest.results, *wide.results[1:-1]]
        a, b, c, d = over_images.results
        f.store(_across(f, f.fadd(f.fadd(a, b), f.fadd(c, d))), out[number])

    return module([jobs.emit_entry("entry", SLOTS, task)])


def _across(f: Function, value: Value) -> Value:
    """The sum of a vector's lanes, halves onto halves."""
    lanes = lanes_of(value.type)
    while lanes > 1:
        lanes //= 2
        low = f.shuffle(value, value, [i % lanes for i in range(lanes_of(value.type))])
        high = f.shuffle(value, value, [lanes + i % lanes for i in range(lanes_of(value.type))])
        value = f.fadd(low, high)
    return f.part(value, 0, 1)
