"""A small typed writer of LLVM IR: values with operators, loops and branches as `with` blocks.

The text is the whole interface to LLVM (`jit` parses it), so it can be printed, hashed and diffed.

>>> f = Function("axpy", [("x", "ptr"), ("y", "ptr"), ("n", "i64")])
>>> x, y, n = f.arguments
>>> with f.loop(0, n, 8) as i:
...     f.store(f.fma(f.load("<8 x float>", x[i]), f.splat(2.0, "<8 x float>"), f.load("<8 x float>", y[i])), y[i])
>>> print(f.text().splitlines()[0])
define void @axpy(ptr noalias %x, ptr noalias %y, i64 %n) nounwind {
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

SIZES = {"float": 4, "double": 8, "i64": 8, "i32": 4, "i8": 1, "ptr": 8}


STREAMED = ", !nontemporal !0"
"""What marks such a store; `module` says what it means."""


def vector(element: str, lanes: int) -> str:
    """The vector type, or the element itself for one lane."""
    return f"<{lanes} x {element}>" if lanes > 1 else element


def element_of(type_: str) -> str:
    return type_.split(" x ")[1][:-1] if type_.startswith("<") else type_


def lanes_of(type_: str) -> int:
    return int(type_[1:].split(" x ")[0]) if type_.startswith("<") else 1


def literal(value: float, type_: str) -> str:
    """A constant of a scalar type as LLVM writes it (floats as the hexadecimal of their double)."""
    if type_ in ("float", "double"):
        number = struct.unpack("f", struct.pack("f", value))[0] if type_ == "float" else float(value)
        return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
    return str(int(value))


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An SSA value or constant. Integer arithmetic by operators; `p[i]` is the address of element i of a pointer."""

    function: Function
    text: str
    type: str
    constant: int | None = None
    element: str = "float"

    def _binary(self, other: Int, op: str, swap: bool = False) -> Value:
        f = self.function
        right = f.value(other)
        a, b = (right, self) if swap else (self, right)
        folded = _fold(op, a, b)
        if folded is not None:
            return folded if isinstance(folded, Value) else f.value(folded)
        return f.emit(f"{op} {self.type} {a.text}, {b.text}", self.type)

    def __add__(self, other: Int) -> Value:
        return self._binary(other, "add")

    def __radd__(self, other: Int) -> Value:
        return self._binary(other, "add", swap=True)

    def __sub__(self, other: Int) -> Value:
        return self._binary(other, "sub")

    def __rsub__(self, other: Int) -> Value:
        return self._binary(other, "sub", swap=True)

    def __mul__(self, other: Int) -> Value:
        return self._binary(other, "mul")

    def __rmul__(self, other: Int) -> Value:
        return self._binary(other, "mul", swap=True)

    def __floordiv__(self, other: Int) -> Value:
        """Signed division; the operands in this code base are never negative."""
        return self._binary(other, "sdiv")

    def __mod__(self, other: Int) -> Value:
        return self._binary(other, "srem")

    def __and__(self, other: Value) -> Value:
        return self._binary(other, "and")

    def __or__(self, other: Value) -> Value:
        return self._binary(other, "or")

    def __lt__(self, other: Int) -> Value:
        return self.function.compare("slt", self, other)

    def __le__(self, other: Int) -> Value:
        return self.function.compare("sle", self, other)

    def __gt__(self, other: Int) -> Value:
        return self.function.compare("sgt", self, other)

    def __ge__(self, other: Int) -> Value:
        return self.function.compare("sge", self, other)

    def equals(self, other: Int) -> Value:
        return self.function.compare("eq", self, other)

    def __getitem__(self, index: Int) -> Value:
        """The address of element `index` (elements of this pointer's `element` type)."""
        f = self.function
        i = f.value(index)
        if i.constant == 0:
            return self
        moved = f.emit(f"getelementptr {self.element}, ptr {self.text}, i64 {i.text}", "ptr")
        return Value(f, moved.text, "ptr", element=self.element)

    def of(self, element: str) -> Value:
        """The same pointer, counting in elements of another type."""
        return Value(self.function, self.text, "ptr", element=element)


Int = Value | int


def _fold(op: str, a: Value, b: Value) -> Value | int | None:
    """Constant arithmetic and neutral elements, so that generators can be written without special cases."""
    x, y = a.constant, b.constant
    if x is not None and y is not None and not (op in ("sdiv", "srem") and y == 0):
        simple = {"add": x + y, "sub": x - y, "mul": x * y, "and": x & y, "or": x | y}
        return simple[op] if op in simple else x // y if op == "sdiv" else x % y
    if y == 0 and op in ("add", "sub"):
        return a
    if x == 0 and op == "add":
        return b
    if y == 1 and op in ("mul", "sdiv"):
        return a
    if x == 1 and op == "mul":
        return b
    if op == "mul" and 0 in (x, y):
        return 0
    if op == "srem" and y == 1:
        return 0
    return None


@dataclass(slots=True)
class Carry:
    """A loop's carried values: `values` inside the body, `next` set by the body, `results` after the loop."""

    values: list[Value]
    next: list[Value] = field(default_factory=list)
    results: list[Value] = field(default_factory=list)


class Function:
    """One function under construction."""

    def __init__(self, name: str, parameters: Sequence[tuple[str, str]], returns: str = "void", attributes: str = "nounwind"):
        self.name, self.returns, self.attributes = name, returns, attributes
        self.parameters = list(parameters)
        self.lines: list[str] = ["entry:"]
        self.block = "entry"
        self.declarations: dict[str, str] = {}
        self._count = 0
        self.arguments = [Value(self, f"%{n}", t) for n, t in parameters]

    # -- values ------------------------------------------------------------------------------------------------

    def emit(self, text: str, type_: str) -> Value:
        self._count += 1
        name = f"%v{self._count}"
        self.lines.append(f"  {name} = {text}")
        return Value(self, name, type_)

    def do(self, text: str) -> None:
        self.lines.append(f"  {text}")

    def value(self, x: Int, type_: str = "i64") -> Value:
        return x if isinstance(x, Value) else Value(self, str(x), type_, constant=x)

    def splat(self, x: float | Value, type_: str) -> Value:
        """A scalar (constant or value) in every lane."""
        lanes, element = lanes_of(type_), element_of(type_)
        if not isinstance(x, Value):
            text = literal(x, element)
            return Value(self, f"splat ({element} {text})" if lanes > 1 else text, type_)
        if lanes == 1:
            return x
        one = self.emit(f"insertelement {type_} poison, {element} {x.text}, i64 0", type_)
        return self.emit(f"shufflevector {type_} {one.text}, {type_} poison, <{lanes} x i32> zeroinitializer", type_)

    def splat_int(self, x: int, type_: str) -> Value:
        """A constant integer in every lane."""
        return Value(self, f"splat ({element_of(type_)} {x})" if lanes_of(type_) > 1 else str(x), type_)

    def iota(self, lanes: int, step: int = 1, type_: str = "i64") -> Value:
        """The integer vector 0, step, 2 * step, ..."""
        if lanes == 1:
            return Value(self, "0", type_)
        return Value(self, "<" + ", ".join(f"{type_} {i * step}" for i in range(lanes)) + ">", vector(type_, lanes))

    def load(self, type_: str, address: Value, align: int | None = None) -> Value:
        return self.emit(f"load {type_}, ptr {address.text}, align {align or SIZES[element_of(type_)]}", type_)

    def load_pointer(self, address: Value, element: str = "float") -> Value:
        return Value(self, self.load("ptr", address).text, "ptr", element=element)

    def store(self, value: Value, address: Value, align: int | None = None) -> None:
        self.do(f"store {value.type} {value.text}, ptr {address.text}, align {align or SIZES[element_of(value.type)]}")

    def stream(self, value: Value, address: Value) -> None:
        """Stores a vector of whole lines, where a line begins, round the caches. Other threads see it after a fence."""
        size = SIZES[element_of(value.type)] * lanes_of(value.type)
        self.do(f"store {value.type} {value.text}, ptr {address.text}, align {size}{STREAMED}")

    def prefetch(self, address: Value, write: bool = False, nearest: bool = True) -> None:
        """Ask for the line at an address that will be read (or written). Any address will do: nothing is touched.

        Not into the `nearest` cache where it is for later, and others would have to leave.
        """
        self.declarations["prefetch"] = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"
        self.do(f"call void @llvm.prefetch.p0(ptr {address.text}, i32 {int(write)}, i32 {3 if nearest else 2}, i32 1)")

    def _op(self, op: str, a: Value, b: Value) -> Value:
        return self.emit(f"{op} {a.type} {a.text}, {b.text}", a.type)

    def truncated(self, value: Value) -> Value:
        """The low 32 bits of an integer."""
        return self.emit(f"trunc i64 {value.text} to i32", "i32")

    def fadd(self, a: Value, b: Value) -> Value:
        return self._op("fadd", a, b)

    def fsub(self, a: Value, b: Value) -> Value:
        return self._op("fsub", a, b)

    def fmul(self, a: Value, b: Value) -> Value:
        return self._op("fmul", a, b)

    def fdiv(self, a: Value, b: Value) -> Value:
        return self._op("fdiv", a, b)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a*b + c, fused where the target fuses."""
        return self.intrinsic("llvm.fmuladd", a.type, [a, b, c])

    def intrinsic(self, name: str, returns: str, args: Sequence[Value], suffix: str | None = None) -> Value:
        full = f"{name}.{suffix or mangled(returns)}"
        self.declarations[full] = f"declare {returns} @{full}({', '.join(a.type for a in args)})"
        call = f"call {returns} @{full}({', '.join(f'{a.type} {a.text}' for a in args)})"
        if returns == "void":
            self.do(call)
            return Value(self, "", "void")
        return self.emit(call, returns)

    def fence(self, value: Value) -> Value:
        """The value, through which the optimiser does not move operations. It costs no instruction, on x86 and on Arm."""
        return self.intrinsic("llvm.arithmetic.fence", value.type, [value])

    def shuffle(self, a: Value, b: Value, lanes: Sequence[int]) -> Value:
        mask = ", ".join(f"i32 {i}" for i in lanes)
        type_ = vector(element_of(a.type), len(lanes))
        text = f"shufflevector {a.type} {a.text}, {b.type} {b.text}, <{len(lanes)} x i32> <{mask}>"
        return self.emit(text, type_)

    def part(self, value: Value, first: int, size: int) -> Value:
        """`size` neighbouring lanes of a vector, one of them as a scalar."""
        if size == lanes_of(value.type):
            return value
        if size == 1:
            return self.emit(f"extractelement {value.type} {value.text}, i64 {first}", element_of(value.type))
        return self.shuffle(value, value, range(first, first + size))

    def compare(self, op: str, a: Value, b: Int) -> Value:
        right = self.value(b)
        return self.emit(f"icmp {op} {a.type} {a.text}, {right.text}", a.type.replace("i64", "i1").replace("i32", "i1"))

    def fcompare(self, op: str, a: Value, b: Value) -> Value:
        return self.emit(f"fcmp {op} {a.type} {a.text}, {b.text}", vector("i1", lanes_of(a.type)))

    def select(self, condition: Value, a: Int, b: Int) -> Value:
        x = a if isinstance(a, Value) else self.value(a)
        y = b if isinstance(b, Value) else self.value(b)
        chosen = self.emit(f"select {condition.type} {condition.text}, {x.type} {x.text}, {y.type} {y.text}", x.type)
        return Value(self, chosen.text, x.type, element=x.element)

    def minimum(self, a: Int, b: Int) -> Value:
        return self._extreme("llvm.smin", min, a, b)

    def maximum(self, a: Int, b: Int) -> Value:
        return self._extreme("llvm.smax", max, a, b)

    def _extreme(self, name: str, fold: Any, a: Int, b: Int) -> Value:
        x, y = self.value(a), self.value(b)
        if x.constant is not None and y.constant is not None:
            return self.value(fold(x.constant, y.constant))
        return self.intrinsic(name, "i64", [x, y])

    # -- lanes ---------------------------------------------------------------------------------------------------

    def lanes_between(self, first: Int, low: Int, high: Int, lanes: int) -> Value:
        """A mask of the lanes l with low <= first + l < high, where low <= high."""
        type_ = vector("i32", lanes)
        iota = Value(self, "<" + ", ".join(f"i32 {i}" for i in range(lanes)) + ">", type_)

        def splat(number: Value) -> Value:
            return self.splat(self.truncated(number), type_)

        index = self._op("add", iota, splat(self.value(first) - low))
        return self.compare("ult", index, splat(self.maximum(self.value(high) - low, 0)))

    def masked_load(self, type_: str, address: Value, mask: Value) -> Value:
        """Lanes under the mask from memory, zero elsewhere; masked-off memory is not touched."""
        align = SIZES[element_of(type_)]
        zero = Value(self, "zeroinitializer", type_)
        name = f"llvm.masked.load.{mangled(type_)}.p0"
        self.declarations[name] = f"declare {type_} @{name}(ptr, {mask.type}, {type_})"
        return self.emit(
            f"call {type_} @{name}(ptr align {align} {address.text}, {mask.type} {mask.text}, {type_} {zero.text})",
            type_,
        )

    def masked_store(self, value: Value, address: Value, mask: Value) -> None:
        align = SIZES[element_of(value.type)]
        name = f"llvm.masked.store.{mangled(value.type)}.p0"
        self.declarations[name] = f"declare void @{name}({value.type}, ptr, {mask.type})"
        self.do(f"call void @{name}({value.type} {value.text}, ptr align {align} {address.text}, {mask.type} {mask.text})")

    def gather(self, type_: str, base: Value, index: Value, mask: Value) -> Value:
        """Lanes from base[index], zero and untouched where the mask is off."""
        lanes, element = lanes_of(type_), element_of(type_)
        pointers = self.emit(f"getelementptr {element}, ptr {base.text}, {index.type} {index.text}", f"<{lanes} x ptr>")
        name = f"llvm.masked.gather.{mangled(type_)}.v{lanes}p0"
        self.declarations[name] = f"declare {type_} @{name}(<{lanes} x ptr>, {mask.type}, {type_})"
        return self.emit(
            f"call {type_} @{name}(<{lanes} x ptr> align {SIZES[element]} {pointers.text}, {mask.type} {mask.text}, "
            f"{type_} zeroinitializer)",
            type_,
        )

    def strided_load(self, type_: str, address: Value, stride: Int, mask: Value) -> Value:
        """Lanes from address, address + stride, ... elements; zero and untouched where the mask is off."""
        lanes = lanes_of(type_)
        steps = self._op("mul", self.iota(lanes), self.splat(self.value(stride), vector("i64", lanes)))
        return self.gather(type_, address, steps, mask)

    # -- control ---------------------------------------------------------------------------------------------------

    def label(self, hint: str) -> str:
        self._count += 1
        return f"{hint}.{self._count}"

    def start(self, label: str) -> None:
        self.lines.append(f"{label}:")
        self.block = label

    @contextmanager
    def loop(self, low: Int, high: Int, step: Int = 1, name: str = "i", carry: Carry | None = None) -> Iterator[Value]:
        """`for i in range(low, high, step)`; with `carry`, its values are loop phis."""
        lo, hi = self.value(low), self.value(high)
        before, body, done = self.block, self.label(name), self.label(f"{name}.done")
        initial = list(carry.values) if carry else []
        self.do(f"br i1 {(lo < hi).text}, label %{body}, label %{done}")
        entry = self.block
        assert entry == before
        self.start(body)
        slot = len(self.lines)
        index = self.emit("", "i64")
        phis = [self.emit("", v.type) for v in initial]
        if carry:
            carry.values = [Value(self, p.text, p.type, element=v.element) for p, v in zip(phis, initial, strict=True)]
        yield index
        following = index + step
        latch = self.block
        again = following < hi
        self.do(f"br i1 {again.text}, label %{body}, label %{done}")
        final = carry.next if carry else []
        for k, (phi, first, last) in enumerate(zip([index, *phis], [lo, *initial], [following, *final], strict=True)):
            self.lines[slot + k] = f"  {phi.text} = phi {phi.type} [ {first.text}, %{entry} ], [ {last.text}, %{latch} ]"
        self.start(done)
        if carry:
            carry.results = [
                Value(
                    self,
                    self.emit(f"phi {a.type} [ {a.text}, %{entry} ], [ {b.text}, %{latch} ]", a.type).text,
                    a.type,
                    element=a.element,
                )
                for a, b in zip(initial, final, strict=True)
            ]

    @contextmanager
    def when(self, condition: Value, name: str = "if") -> Iterator[None]:
        """Runs the body where the condition holds."""
        body, done = self.label(name), self.label(f"{name}.done")
        self.do(f"br i1 {condition.text}, label %{body}, label %{done}")
        self.start(body)
        yield
        self.do(f"br label %{done}")
        self.start(done)

    @contextmanager
    def otherwise(self, condition: Value, name: str = "else") -> Iterator[None]:
        """Runs the body where the condition does not hold."""
        body, done = self.label(name), self.label(f"{name}.done")
        self.do(f"br i1 {condition.text}, label %{done}, label %{body}")
        self.start(body)
        yield
        self.do(f"br label %{done}")
        self.start(done)

    def call(self, callee: Function, arguments: Sequence[Int]) -> Value:
        """Calls another function of the module; the result is of no use where it returns void."""
        passed = ", ".join(f"{t} {self.value(a).text}" for (_, t), a in zip(callee.parameters, arguments, strict=True))
        call = f"call {callee.returns} @{callee.name}({passed})"
        if callee.returns == "void":
            self.do(call)
            return Value(self, "", "void")
        return self.emit(call, callee.returns)

    def text(self) -> str:
        """The definition; the body gets its `ret` here."""
        arguments = ", ".join(f"{t} {'noalias ' if t == 'ptr' else ''}%{n}" for n, t in self.parameters)
        linkage = "internal " if "internal" in self.attributes else ""
        attributes = self.attributes.replace("internal", "").strip()
        head = f"define {linkage}{self.returns} @{self.name}({arguments}) {attributes} {{"
        return "\n".join([head, *self.lines, *(["  ret void"] if self.returns == "void" else []), "}"])


def mangled(type_: str) -> str:
    """The type's name inside an intrinsic's name."""
    short = {"float": "f32", "double": "f64"}.get(element_of(type_), element_of(type_))
    return short if lanes_of(type_) == 1 else f"v{lanes_of(type_)}{short}"


def module(functions: Sequence[Function]) -> str:
    """The IR text of a module that holds these functions and declares what they call."""
    declared: dict[str, str] = {}
    for f in functions:
        declared.update(f.declarations)
    texts = [f.text() for f in functions]
    marks = ["!0 = !{i32 1}"] if any(STREAMED in text for text in texts) else []
    return "\n\n".join([*declared.values(), *texts, *marks]) + "\n"
