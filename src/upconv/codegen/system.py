"""What emitted code asks of the processor and the system besides arithmetic: words that threads share, pauses, the C library."""

from __future__ import annotations

import sys
from collections.abc import Callable

from upconv.codegen.ir import SIZES, Function, Value, element_of, lanes_of
from upconv.codegen.target import Target


def pause(f: Function, target: Target) -> None:
    """Tells the processor that this thread waits for another."""
    if target.triple.startswith(("x86_64", "amd64")):
        f.declarations["pause"] = "declare void @llvm.x86.sse2.pause()"
        f.do("call void @llvm.x86.sse2.pause()")
    elif target.triple.startswith(("aarch64", "arm64")):
        f.declarations["pause"] = "declare void @llvm.aarch64.hint(i32)"
        f.do("call void @llvm.aarch64.hint(i32 1)")


def rest(f: Function) -> None:
    """Some hundred cycles of a chain of divisions: what else runs on the core has nearly all of it. For any processor."""
    opaque = 'asm sideeffect "", "=r,0"'
    by = f.emit(f"call i64 {opaque}(i64 3)", "i64")
    left = f.emit(f"call i64 {opaque}(i64 {(1 << 62) + 1})", "i64")
    for _ in range(8):
        left = f.emit(f"udiv i64 {left.text}, {by.text}", "i64")
    f.do(f'call void asm sideeffect "", "r"(i64 {left.text})')


def shuffled(f: Function, value: Value) -> Value:
    """A vector of 32 bytes by way of a shuffle that leaves it as it is; others as they are. See `target.STALLED`.

    It is an instruction of AVX that the optimiser knows nothing of: what it knows to do nothing it takes out.
    """
    if lanes_of(value.type) * SIZES[element_of(value.type)] != 32:
        return value
    same = 'asm "vpermilps $$0xe4, $1, $0", "=x,x"'
    return f.emit(f"call {value.type} {same}({value.type} {value.text})", value.type)


def wait(f: Function, busy: Callable[[], Value], meanwhile: Callable[[], object]) -> None:
    """Looks for as long as it is `busy`, which writes the code that tells, with what `meanwhile` writes between two looks."""
    look, again, done = f.label("look"), f.label("again"), f.label("done")
    f.do(f"br label %{look}")
    f.start(look)
    f.do(f"br i1 {busy().text}, label %{again}, label %{done}")
    f.start(again)
    meanwhile()
    f.do(f"br label %{look}")
    f.start(done)


def pointer(f: Function, number: Value) -> Value:
    """An address as a pointer to words."""
    return Value(f, f.emit(f"inttoptr i64 {number.text} to ptr", "ptr").text, "ptr", element="i64")


def word(f: Function) -> Value:
    """The address of a word of this call's own."""
    return Value(f, f.emit("alloca i64, align 8", "ptr").text, "ptr", element="i64")


def load(f: Function, address: Value) -> Value:
    """A word as it is now."""
    return f.emit(f"load atomic i64, ptr {address.text} seq_cst, align 8", "i64")


def store(f: Function, value: Value, address: Value) -> None:
    """Writes a word for other threads to see."""
    f.do(f"store atomic i64 {value.text}, ptr {address.text} seq_cst, align 8")


def exchange(f: Function, address: Value, old: Value, new: Value) -> Value:
    """Whether the word was `old` and is now `new`."""
    pair = f.emit(f"cmpxchg ptr {address.text}, i64 {old.text}, i64 {new.text} seq_cst seq_cst", "{ i64, i1 }")
    return f.emit(f"extractvalue {{ i64, i1 }} {pair.text}, 1", "i1")


def call(f: Function, declaration: str, *arguments: str) -> Value:
    """A function of the C library, declared as `i32 @name(i64, ptr)`, with arguments as `i64 8`."""
    returns, name = declaration.split("(")[0].split()
    f.declarations[name] = f"declare {declaration}"
    return f.emit(f"call {returns} {name}({', '.join(arguments)})", returns)


def processor(f: Function) -> Value:
    """The processor that the thread runs on; 0 where the system does not say."""
    if sys.platform != "linux":
        return f.value(0)
    here = call(f, "i32 @sched_getcpu()")
    return f.maximum(f.emit(f"sext i32 {here.text} to i64", "i64"), 0)


def futex(f: Function, number: int, address: Value, operation: int, value: int) -> None:
    """The system call of that number on a word."""
    f.declarations["syscall"] = "declare i64 @syscall(i64, ...)"
    f.do(f"call i64 (i64, ...) @syscall(i64 {number}, ptr {address.text}, i64 {operation}, i64 {value}, i64 0, i64 0, i64 0)")
