"""Emitted code: what the IR helpers compute, the form of every kernel's IR, and no stack access in any tile's inner loop."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernel_runs as runs
from upconv import planner
from upconv.codegen import jit
from upconv.codegen.ir import SIZES, Carry, Function, Value, element_of, lanes_of, literal, mangled, module, vector
from upconv.codegen.target import Target
from upconv.kernels import microkernel, register_tile

LEVELS = runs.levels()
HASWELL = Target("avx2", "x86_64-unknown-linux-gnu", "haswell", "", 32, 16, 32 << 10, 512 << 10, masks=False)
SKYLAKE_X = Target("avx512", "x86_64-unknown-linux-gnu", "skylake-avx512", "", 64, 32, 32 << 10, 1 << 20, masks=True)
X86 = pytest.mark.skipif("sse2" not in LEVELS, reason="x86-64 assembly")


def built(name: str, parameters: list[tuple[str, str]], body: Callable[..., None], level: str = LEVELS[0]) -> Any:
    """The emitted function as a Python callable of integers and addresses."""
    f = Function(name, parameters)
    body(f, *f.arguments)
    text = module([f])
    code = jit.get(name, text, (name,), lambda: text, runs.target_of(level))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(parameters))(code[name])


# -- the helpers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["float", "double", "<8 x float>", "<2 x double>", "<4 x i64>", "i64"])
def test_types_take_apart_and_go_together(type_: str) -> None:
    assert vector(element_of(type_), lanes_of(type_)) == type_
    assert element_of(type_) in SIZES


def test_names_inside_intrinsics() -> None:
    assert [mangled(t) for t in ("float", "<16 x float>", "<2 x double>", "<4 x i64>", "i64")] == [
        "f32",
        "v16f32",
        "v2f64",
        "v4i64",
        "i64",
    ]


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 0.1, -1e30, 1e-40, float("inf"), -float("inf")])
@pytest.mark.parametrize("type_", ["float", "double"])
def test_constants_keep_every_bit(value: float, type_: str) -> None:
    dtype = np.float32 if type_ == "float" else np.float64
    out = np.zeros(1, dtype)

    def body(f: Function, to: Value) -> None:
        f.store(f.splat(value, type_), to.of(type_))

    built(f"constant_{type_}", [("to", "ptr")], body)(out.ctypes.data)
    assert out.tobytes() == dtype(value).tobytes()
    assert literal(3, "i64") == "3"


def test_constants_fold_and_neutral_elements_vanish() -> None:
    f = Function("f", [("n", "i64")])
    n = f.arguments[0]
    two, five = f.value(2), f.value(5)
    assert [(a.constant) for a in (two + five, two - five, two * five, five // 2, five % 2, 3 + two, 3 * two)] == [
        7,
        -3,
        10,
        2,
        1,
        5,
        6,
    ]
    for same in (n + 0, n - 0, 0 + n, n * 1, 1 * n, n // 1):
        assert same is n
    assert [(n * 0).constant, (0 * n).constant, (n % 1).constant] == [0, 0, 0]
    assert f.minimum(3, 4).constant == 3
    assert f.maximum(3, 4).constant == 4
    assert f.lines == ["entry:"]


def test_integer_arithmetic_is_python_s_on_numbers_that_are_not_negative() -> None:
    out = np.zeros(12, np.int64)

    def body(f: Function, a: Value, b: Value, to: Value) -> None:
        results = [a + b, a - b, 7 - a, a * b, a // b, a % b, f.minimum(a, b), f.maximum(a, b)]
        results += [f.select(c, 1, 0) for c in (a < b, a <= b, a > b, a.equals(b))]
        for i, r in enumerate(results):
            f.store(r, to.of("i64")[i])

    run = built("arithmetic", [("a", "i64"), ("b", "i64"), ("to", "ptr")], body)
    for a, b in ((17, 5), (5, 17), (6, 6), (0, 3), (1 << 40, 1 << 20)):
        run(a, b, out.ctypes.data)
        expected = [a + b, a - b, 7 - a, a * b, a // b, a % b, min(a, b), max(a, b), a < b, a <= b, a > b, a == b]
        assert out.tolist() == [int(e) for e in expected]


@pytest.mark.parametrize(("low", "high", "step"), [(0, 10, 1), (0, 10, 3), (5, 5, 1), (7, 3, 2), (-4, 4, 3), (0, 1, 100)])
def test_loops_count_as_range_does_and_carry_values(low: int, high: int, step: int) -> None:
    out = np.zeros(2, np.int64)

    def body(f: Function, lo: Value, hi: Value, to: Value) -> None:
        carry = Carry([f.value(0), f.value(1)])
        with f.loop(lo, hi, step, carry=carry) as i:
            total, power = carry.values
            carry.next = [total + i, power * 2]
        for i, result in enumerate(carry.results):
            f.store(result, to.of("i64")[i])

    built(f"loop_{step}", [("lo", "i64"), ("hi", "i64"), ("to", "ptr")], body)(low, high, out.ctypes.data)
    assert out.tolist() == [sum(range(low, high, step)), 2 ** len(range(low, high, step))]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("count", range(5))
def test_masks_touch_only_their_lanes(level: str, count: int) -> None:
    x, y = np.arange(1.0, 9.0, dtype=np.float32), np.full(4, -1.0, np.float32)
    z = np.full(4, -1.0, np.float32)

    def body(f: Function, n: Value, source: Value, to: Value, strided: Value) -> None:
        mask = f.lanes_between(0, 0, n, 4)
        f.masked_store(f.masked_load("<4 x float>", source, mask), to, mask)
        f.store(f.strided_load("<4 x float>", source, 2, mask), strided)

    parameters = [("n", "i64"), ("x", "ptr"), ("y", "ptr"), ("z", "ptr")]
    built("masks", parameters, body, level)(count, x.ctypes.data, y.ctypes.data, z.ctypes.data)
    assert y.tolist() == [*x[:count], *[-1.0] * (4 - count)]
    assert z.tolist() == [*x[::2][:count], *[0.0] * (4 - count)]


@pytest.mark.parametrize("level", LEVELS)
def test_conditions_and_calls(level: str) -> None:
    callee = Function("twice", [("n", "i64")], returns="i64", attributes="internal noinline nounwind")
    callee.do(f"ret i64 {(callee.arguments[0] * 2).text}")
    f = Function("branches", [("n", "i64"), ("to", "ptr")])
    n, to = f.arguments
    positive = n > 0
    with f.when(positive):
        f.store(f.call(callee, [n]), to.of("i64"))
    with f.otherwise(positive):
        f.store(f.value(-5), to.of("i64"))
    text = module([callee, f])
    code = jit.get("branches", text, ("branches",), lambda: text, runs.target_of(level))
    run = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(code["branches"])
    out = np.zeros(1, np.int64)
    for given, expected in ((4, 8), (0, -5), (-3, -5)):
        run(given, out.ctypes.data)
        assert out[0] == expected


# -- every kernel's IR -----------------------------------------------------------------------------------------------------------

LAYERS: dict[str, dict[str, Any]] = {
    "k4s2": dict(size=(32, 24), in_channels=64, out_channels=64, kernel_size=4, stride=2, padding=1),
    "k2s2": dict(size=(32, 24), in_channels=64, out_channels=64, kernel_size=2, stride=2, activation="silu"),
    "vocoder": dict(size=(400,), in_channels=64, out_channels=32, kernel_size=16, stride=8, padding=4),
    "istft": dict(size=(60,), in_channels=514, out_channels=1, kernel_size=1024, stride=256),
    "3d": dict(size=(8, 8, 8), in_channels=16, out_channels=8, kernel_size=3, stride=2, padding=1, output_padding=1),
    "depthwise": dict(size=(32, 32), in_channels=64, out_channels=64, groups=64, kernel_size=4, stride=2, padding=1),
    "downsampling": dict(size=(33, 33), in_channels=16, out_channels=32, kernel_size=3, stride=2, padding=1, transposed=False),
    "double": dict(size=(16, 16), in_channels=16, out_channels=8, kernel_size=4, stride=2, padding=1, dtype="float64"),
}
EVERY_KERNEL = [
    pytest.param(kernel, problem, target, id=f"{kernel.NAME}-{name}-{target.name}")
    for kernel in (*runs.KERNELS, *planner.LAST)
    for name, problem in ((name, runs.make(**layer)) for name, layer in LAYERS.items())
    for target in (HASWELL, SKYLAKE_X)
    if kernel.rejects(problem, target) is None
]


def blocks_of(text: str) -> list[tuple[str, str, list[str]]]:
    """(function, label, instructions) of every basic block."""
    found = []
    for name, body in re.findall(r"define [^@]*@(\w+)\([^)]*\)[^{]*\{\n(.*?)\n\}", text, re.S):
        for line in body.splitlines():
            label = re.match(r"^([\w.]+):", line)
            if label:
                found.append((name, label.group(1), []))
            elif line.strip():
                found[-1][2].append(line.strip())
    return found


@pytest.mark.parametrize(("kernel", "problem", "target"), EVERY_KERNEL)
def test_every_block_ends_once_and_jumps_to_blocks_that_are_there(kernel: Any, problem: Any, target: Target) -> None:
    blocks = blocks_of(kernel.emit(problem, kernel.blocking(problem, target, 2)))
    labels = {(function, label) for function, label, _ in blocks}
    assert len(labels) == len(blocks) > 3
    for function, label, instructions in blocks:
        ends = [i for i, text in enumerate(instructions) if re.match(r"(br|ret|switch|unreachable)\b", text)]
        assert ends == [len(instructions) - 1], f"{function}: {label}"
        for to in re.findall(r"label %([\w.]+)", instructions[-1]):
            assert (function, to) in labels
        phis = [i for i, text in enumerate(instructions) if " = phi " in text]
        assert phis == list(range(len(phis))), f"{function}: {label} has a phi behind other instructions"


@pytest.mark.parametrize(("kernel", "problem", "target"), EVERY_KERNEL)
def test_the_ir_depends_on_nothing_but_the_parameters(kernel: Any, problem: Any, target: Target) -> None:
    """What the key says is all there is: the same parameters write the same text, here for another batch and size."""
    from dataclasses import replace

    how = kernel.blocking(problem, target, 2)
    text = kernel.emit(problem, how)
    assert text == kernel.emit(problem, how)
    size = tuple(n * 3 for n in problem.input_size)
    other = replace(problem, batch=3, input_size=size, output_size=problem.spec.output_size(size))
    again = kernel.blocking(other, target, 1)
    if kernel.rejects(other, target) is None and kernel.code_parameters(other, again) == kernel.code_parameters(problem, how):
        assert kernel.emit(other, again) == text


@pytest.mark.parametrize(("kernel", "problem", "target"), EVERY_KERNEL)
def test_names_decode_themselves(kernel: Any, problem: Any, target: Target) -> None:
    name = kernel.code_name(problem, kernel.blocking(problem, target, 2), target)
    direction = "convt" if problem.spec.transposed else "conv"
    family = re.sub("_(wide|widest|middle)$", "", kernel.NAME)  # which its tiles say: f5x2 where the narrow one has f3x2
    assert name.startswith(f"{direction}_f{problem.itemsize * 8}_{family}_")
    assert name.endswith(f"_{target.name}")


# -- assembly ----------------------------------------------------------------------------------------------------------------------


def assembly(text: str, target: Target, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """The stage dump UPCONV_DEBUG=asm prints it."""
    monkeypatch.setenv("UPCONV_DEBUG", "asm")
    capfd.readouterr()
    stored = jit.compile_object(text, target)
    assert stored[:4] == b"\x7fELF"
    head, _, text = capfd.readouterr().err.partition("; ---- upconv asm\n")
    assert head == ""
    return text


def hot_loops(text: str) -> list[list[str]]:
    """Basic blocks that multiply and jump to themselves: the innermost loops of the sums."""
    found, label, lines = [], "", list[str]()
    for line in text.splitlines():
        start = re.match(r"^([.\w$]+):", line)
        if start:
            label, lines = start.group(1), []
            continue
        instruction = line.strip()
        if not instruction or instruction.startswith((".", "#")):
            continue
        lines.append(instruction)
        if re.match(r"j\w+\s", instruction):
            if instruction.split()[-1] == label and any(re.match(r"v?(fn?m(add|sub)\d+|mul)p[sd]\b", i) for i in lines):
                found.append(lines)
            label, lines = "", []
    return found


def stack_accesses(lines: list[str]) -> list[str]:
    """rbp is a register like any other here: no function keeps a frame pointer."""
    return [line for line in lines if "(%rsp" in line]


@X86
@pytest.mark.parametrize("element", ["float", "double"])
@pytest.mark.parametrize("target", [HASWELL, SKYLAKE_X], ids=lambda t: t.name)
def test_no_tile_touches_the_stack_in_its_inner_loop(
    target: Target, element: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every tile that a plan may choose, the largest first: accumulators stay in registers."""
    spilled = []
    tiles = register_tile.tiles(element, target)
    assert len(tiles) > 10
    of_a_length = ([t for t in tiles if t.lanes == lanes] for lanes in {t.lanes for t in tiles})
    some = [tile for same in of_a_length for tile in same[:: max(1, len(same) // 20)]]
    for tile in [register_tile.reading(tile, size, target) for tile in some for size in (0, 2 * register_tile.NEAR * target.l2)]:
        text = module([microkernel.emit(tile)]).replace("define internal ", "define ")
        loops = hot_loops(assembly(text, target, monkeypatch, capfd))
        assert loops, f"{tile}: no inner loop found"
        products = [sum(bool(re.match(r"vfn?madd", line)) for line in loop) for loop in loops]
        assert max(products) >= tile.rows * tile.vectors
        spilled += [str(tile) for loop in loops if stack_accesses(loop)]
    assert spilled == []


@X86
@pytest.mark.parametrize(("kernel", "problem", "target"), EVERY_KERNEL)
def test_no_kernel_touches_the_stack_in_its_hottest_loop(
    kernel: Any, problem: Any, target: Target, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The loop with the most multiply-adds, in the whole optimised module (where LLVM may have merged and moved things).

    Of the loops that broadcast one of the factors, where there are any: a transform may have as many, and keeps pointers there.
    """
    text = kernel.emit(problem, kernel.blocking(problem, target, 2))
    loops = hot_loops(assembly(text, target, monkeypatch, capfd))
    assert loops
    loops = [loop for loop in loops if any(re.match(r"vbroadcasts.*\(%r(?!ip|sp)|v.*1to", line) for line in loop)] or loops

    def products(loop: list[str]) -> int:
        return sum(bool(re.match(r"vfn?m(add|sub)", line)) for line in loop)

    hottest = max(loops, key=products)
    assert products(hottest) >= 4
    assert stack_accesses(hottest) == []


def test_the_search_for_spills_finds_one() -> None:
    text = (
        "f:\n\tnop\n.LBB0_1:\n\tvmovups\t%ymm0, 32(%rsp)\n\tvfmadd231ps\t(%rax), %ymm1, %ymm2\n\taddq\t$1, %rax\n\tjne\t.LBB0_1\n"
    )
    assert [stack_accesses(loop) for loop in hot_loops(text)] == [["vmovups\t%ymm0, 32(%rsp)"]]
    assert hot_loops(text.replace("vfmadd231ps", "vmovaps")) == []


@pytest.mark.parametrize("stage", ["ir", "asm", "ir,asm", "ir|asm"])
def test_stages_are_printed_on_request(stage: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    problem = runs.make(**LAYERS["k4s2"])
    kernel, target = runs.KERNELS[0], runs.target_of(LEVELS[0])
    how = kernel.blocking(problem, target, 1)
    monkeypatch.setenv("UPCONV_DEBUG", stage)
    monkeypatch.setattr(jit, "_loaded", {})
    jit.get("shown", stage, ("entry",), lambda: kernel.emit(problem, how), target)
    printed = capfd.readouterr().err
    assert [name for name in ("ir", "asm") if f"; ---- upconv {name}\n" in printed] == re.split(r"[,|]", stage)
