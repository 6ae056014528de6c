"""Storing the output: the phases of a row woven together, bias and activation applied, cropped to the result.

A tile leaves each phase's row in a scratch block. `rows` lists, once a task, where every finished output row starts;
`store` then weaves: output position `out_step*q + a - crop` takes phase a at q.
"""

from __future__ import annotations

from dataclasses import dataclass

from upconv.codegen.ir import Carry, Function, Value, vector
from upconv.kernels.activation import emit_activation
from upconv.kernels.geometry import Axis
from upconv.kernels.job import Slots
from upconv.spec import Activation

SLOTS = (
    "out_d", "out_h", "out_w", "out_step_d", "out_step_h", "crop_d", "crop_h", "crop_w", "positions_w",
    "y_image", "y_channel", "bias", "phase_rows", "scratch_pitch", "rows_d", "rows_h", "rows_w",
)  # fmt: skip
ENTRY = 5  # i64 a row: offset in y, column in scratch, phase, first position, end position


@dataclass(frozen=True, slots=True)
class Store:
    """What changes the code. `step` is the innermost out_step; steps above the lanes are woven in blocks (step 0)."""

    element: str
    lanes: int
    step: int
    activation: Activation | None

    @property
    def type(self) -> str:
        return vector(self.element, self.lanes)


def weave(f: Function, streams: list[Value]) -> list[Value]:
    """Vectors whose concatenation is streams[0][0], streams[1][0], ..., streams[0][1], ...

    >>> from upconv.codegen.ir import Function, Value
    >>> f = Function("w", [])
    >>> [v.type for v in weave(f, [Value(f, "%a", "<4 x float>"), Value(f, "%b", "<4 x float>")])]
    ['<4 x float>', '<4 x float>']
    """
    n = len(streams)
    lanes = int(streams[0].type[1:].split(" x ")[0])
    if n == 1:
        return streams
    if n % 2 == 0:
        evens, odds = weave(f, streams[0::2]), weave(f, streams[1::2])
        half = lanes // 2
        low = [i // 2 + (i % 2) * lanes for i in range(lanes)]
        pairs = zip(evens, odds, strict=True)
        return [v for a, b in pairs for v in (f.shuffle(a, b, low), f.shuffle(a, b, [i + half for i in low]))]
    woven = []
    for j in range(n):
        value = streams[0]
        source = [divmod(j * lanes + i, n) for i in range(lanes)]  # (position, stream) of each lane
        current = [q for q, _ in source]
        for a in range(1, n):
            value = f.shuffle(
                value,
                streams[a],
                [lanes + q if s == a else (i if a > 1 else current[i]) for i, (q, s) in enumerate(source)],
            )
        woven.append(value)
    return woven


def cycles(channels: int, axes: tuple[Axis, Axis, Axis], lanes: int) -> float:
    """Estimated cycles of storing `channels` channels of images whose positions the axes count."""
    d, h, w = axes
    rows = channels * d.positions * h.positions * d.out_step * h.out_step
    vectors = -(-w.positions // lanes)
    return rows * (40.0 + vectors * w.out_step * 5.0)


def emit_rows(slots: Slots) -> Function:
    """`rows(job, table, low, high) -> count`: the output rows that positions low..high-1 finish, ENTRY numbers each."""
    f = Function(
        "rows",
        [("job", "ptr"), ("table", "ptr"), ("low", "i64"), ("high", "i64")],
        returns="i64",
        attributes="internal noinline nounwind",
    )
    job, table, low, high = f.arguments
    table = table.of("i64")
    names = ("rows_d", "rows_h", "rows_w", *SLOTS[:10])
    s = {name: slots.read(f, job, name) for name in names}
    counts = Carry([f.value(0)])
    with f.loop(low // s["rows_w"], (high - 1) // s["rows_w"] + 1, name="row", carry=counts) as row:
        h, rest = row % s["rows_h"], row // s["rows_h"]
        d, n = rest % s["rows_d"], rest // s["rows_d"]
        start = row * s["rows_w"]
        w0, w1 = f.maximum(low - start, 0), f.minimum(high - start, s["positions_w"])
        over_d = Carry(counts.values)
        with f.loop(0, s["out_step_d"], name="ad", carry=over_d) as ad:
            over_h = Carry(over_d.values)
            with f.loop(0, s["out_step_h"], name="ah", carry=over_h) as ah:
                od, oh = d * s["out_step_d"] + ad - s["crop_d"], h * s["out_step_h"] + ah - s["crop_h"]
                good = f.compare("ult", od, s["out_d"]) & f.compare("ult", oh, s["out_h"]) & (w0 < w1)
                entry = table[over_h.values[0] * ENTRY]
                phase = ad * s["out_step_h"] + ah
                offset = n * s["y_image"] + (od * s["out_h"] + oh) * s["out_w"]
                for i, value in enumerate((offset, start - low, phase, w0, w1)):
                    f.store(value, entry[i])
                over_h.next = [over_h.values[0] + f.select(good, 1, 0)]
            over_d.next = over_h.results
        counts.next = over_d.results
    f.do(f"ret i64 {counts.results[0].text}")
    return f


def emit(store: Store, slots: Slots) -> Function:
    """`store(job, table, count, scratch, y, channel, channels)`: finishes `channels` channels of the rows in the table.

    `channel` is the first channel's number among all output channels (for the bias); `y` is its plane of image 0.
    """
    f = Function(
        "store",
        [
            ("job", "ptr"),
            ("table", "ptr"),
            ("count", "i64"),
            ("scratch", "ptr"),
            ("y", "ptr"),
            ("channel", "i64"),
            ("channels", "i64"),
        ],
        attributes="internal noinline nounwind",
    )
    job, table, count, scratch, y, channel, channels = f.arguments
    table, scratch, y = table.of("i64"), scratch.of(store.element), y.of(store.element)
    bias = slots.pointer(f, job, "bias", store.element)
    phase_rows = slots.pointer(f, job, "phase_rows", "i64")
    s = {name: slots.read(f, job, name) for name in ("out_w", "crop_w", "y_channel", "scratch_pitch", "out_step_w")}
    with f.loop(0, channels, name="m") as m:
        offset = f.load(store.element, bias[channel + m])
        plane = y[m * s["y_channel"]]
        with f.loop(0, count, name="row") as r:
            entry = table[r * ENTRY]
            start, column, phase, w0, w1 = (f.load("i64", entry[i]) for i in range(ENTRY))
            out_row, source = plane[start], scratch[column]

            def stream(a: Value, phase: Value = phase, m: Value = m, source: Value = source) -> Value:
                """Where phase a of channel m starts in the scratch block."""
                at = phase_rows[(phase * s["out_step_w"] + a) * 2]
                line = f.load("i64", at) + m * f.load("i64", at[1])
                return source[line * s["scratch_pitch"]]

            finish = _Finish(f, store, offset, s)
            if store.step:
                finish.interleaved([stream(f.value(a)) for a in range(store.step)], out_row, w0, w1)
            else:
                finish.blocked(stream, out_row, w0, w1)
    return f


@dataclass(slots=True)
class _Finish:
    """Writes one output row."""

    f: Function
    store: Store
    offset: Value
    s: dict[str, Value]

    def _value(self, address: Value, lanes: int) -> Value:
        type_ = vector(self.store.element, lanes)
        offset = self.f.splat(self.offset, type_)
        return emit_activation(self.f, self.f.fadd(self.f.load(type_, address), offset), self.store.activation)

    def interleaved(self, streams: list[Value], row: Value, w0: Value, w1: Value) -> None:
        """Steps up to the lanes: whole vectors where they fit, masked ones, no longer than need be, at the row's ends."""
        f, step, lanes = self.f, self.store.step, self.store.lanes
        end = f.minimum(w1 * step - self.s["crop_w"], self.s["out_w"])
        with f.loop(w0, w1, lanes, name="w") as w:
            o = w * step - self.s["crop_w"]
            whole = (o >= 0) & (o + step * lanes <= end)
            with f.when(whole, name="whole"):
                for j, value in enumerate(weave(f, [self._value(p[w], lanes) for p in streams])):
                    f.store(value, row[o + j * lanes])
            with f.otherwise(whole, name="edge"):
                self._edge(streams, row, w, w1 - w, o, end, lanes)

    def _edge(self, streams: list[Value], row: Value, w: Value, left: Value, o: Value, end: Value, lanes: int) -> None:
        """At most `left` positions, in the shortest vectors that hold them."""
        f = self.f
        shorter = lanes // 2
        if shorter >= 4:
            few = left <= shorter
            with f.when(few, name="few"):
                self._edge(streams, row, w, left, o, end, shorter)
            with f.otherwise(few, name="many"):
                self._masked(streams, row, w, o, end, lanes)
        else:
            self._masked(streams, row, w, o, end, lanes)

    def _masked(self, streams: list[Value], row: Value, w: Value, o: Value, end: Value, lanes: int) -> None:
        f = self.f
        for j, value in enumerate(weave(f, [self._value(p[w], lanes) for p in streams])):
            at = o + j * lanes
            f.masked_store(value, row[at], f.lanes_between(at, 0, end, lanes))

    def blocked(self, stream: object, row: Value, w0: Value, w1: Value) -> None:
        """Steps beyond the lanes: squares of phases x positions, transposed, each position's phases stored together."""
        f, lanes, step = self.f, self.store.lanes, self.s["out_step_w"]
        with f.loop(0, step, lanes, name="a") as a:
            sources = [stream(f.minimum(a + i, step - 1)) for i in range(lanes)]  # type: ignore[operator]
            phases = f.minimum(step - a, lanes)
            with f.loop(w0, w1, lanes, name="w") as w:
                columns = weave(f, [self._value(p[w], lanes) for p in sources])
                for i, value in enumerate(columns):
                    with f.when(w + i < w1, name="column"):
                        o = (w + i) * step + a - self.s["crop_w"]
                        high = f.minimum(o + phases, self.s["out_w"])
                        f.masked_store(value, row[o], f.lanes_between(o, 0, high, lanes))
