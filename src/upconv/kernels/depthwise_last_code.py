"""The code of the depthwise kernel for arrays with their channels last: position by position, channels in the lanes."""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import Carry, Function, Value, module, vector
from upconv.kernels import job as jobs
from upconv.kernels import positions
from upconv.kernels.activation import emit_activation
from upconv.spec import Activation

SLOTS = jobs.Slots((*positions.SLOTS, "weight", "bias", "work", "phases", "channels", "table_bytes"))
WORK, PHASE = 4, 2
"""Numbers a task: set, first column, end, first of the set's phases; a phase: place in y, place in the weights."""

AHEAD, FARTHEST = 512, 4
"""Elements, and columns at most, ahead that Intel's servers ask for lines of y. Measured: 1.16 over six vocoder layers, 1.17 over
24 others, those of fewer channels than two vectors, which do not ask, included; twice as far 1.08 and 1.12."""


@dataclass(frozen=True, slots=True)
class Code:
    """Everything that the emitted code depends on: `vectors` of channels at a time, which may ask for what they write."""

    element: str
    lanes: int
    vectors: int
    activation: Activation | None
    asks: bool = False


def emit(code: Code) -> str:
    """The module's IR text; its entry is `entry(job)`."""
    do_table, do_columns = positions.emit_table(SLOTS, code.element, 1), _emit_columns(code)

    def task(f: Function, job: Value, number: Value, workspace: Value) -> None:
        work = SLOTS.pointer(f, job, "work", "i64")[number * WORK]
        set_, low, high, phase = (f.load("i64", work[i]) for i in range(WORK))
        row = SLOTS.pointer(f, job, "sets", "i64")[set_ * positions.SET]
        place = SLOTS.pointer(f, job, "phases", "i64")[phase * PHASE]
        to, at = (f.load("i64", place[i]) for i in range(PHASE))
        weight, bias = (SLOTS.pointer(f, job, name, code.element) for name in ("weight", "bias"))
        f.call(do_table, [job, row, workspace, low, high, SLOTS.pointer(f, job, "x", code.element)])
        f.call(do_columns, [workspace, high - low, f.load("i64", row[1]), weight[at], SLOTS.read(f, job, "channels"), to, bias])

    return module([do_table, do_columns, jobs.emit_entry("entry", SLOTS, task)])


def _emit_columns(code: Code) -> Function:
    """`columns(table, width, taps, weight, channels, to, bias)`: the sums of all columns of a table, which go `to` past its places.

    The last vector of channels overlaps the one before. What the next column reads is near, and comes by itself.
    """
    pointers = ("table", "weight", "bias")
    names = ("table", "width", "taps", "weight", "channels", "to", "bias")
    f = Function("columns", [(n, "ptr" if n in pointers else "i64") for n in names], attributes="internal noinline nounwind")
    table, width, taps, weight, channels, to, bias = f.arguments
    table, weight, bias = table.of("i64"), weight.of(code.element), bias.of(code.element)
    type_, lanes = vector(code.element, code.lanes), code.lanes
    span = code.vectors * lanes
    whole = channels // span * span
    with f.loop(0, width, name="column") as column:
        row = table[column * (taps + 1)]
        y = f.load_pointer(row[taps], code.element)[to]
        later = y
        if code.asks:
            soon = f.minimum(column + f.maximum(f.minimum(f.value(AHEAD) // channels, FARTHEST), 1), width - 1)
            later = f.load_pointer(table[soon * (taps + 1) + taps], code.element)[to]
        for low, high, vectors in ((f.value(0), whole, code.vectors), (whole, channels, 1)):
            with f.loop(low, high, vectors * lanes, name="c") as at:
                c = f.minimum(at, channels - vectors * lanes)
                for v in range(vectors if code.asks else 0):
                    f.prefetch(later[c + v * lanes], write=True)
                sums = Carry([f.load(type_, bias[c + v * lanes]) for v in range(vectors)])
                with f.loop(0, taps, name="tap", carry=sums) as tap:
                    x, w = f.load_pointer(row[tap], code.element)[c], weight[tap * channels + c]
                    sums.next = [
                        f.fma(f.load(type_, x[v * lanes]), f.load(type_, w[v * lanes]), total)
                        for v, total in enumerate(sums.values)
                    ]
                for v, total in enumerate(sums.results):
                    f.store(emit_activation(f, total, code.activation), y[c + v * lanes])
    return f
