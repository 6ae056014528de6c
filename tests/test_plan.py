"""Plans: chosen without arrays or compilers, explained in words, and code that does not depend on sizes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import kernel_runs as runs
import upconv
from processes import said
from upconv import planner
from upconv.codegen import jit
from upconv.codegen.target import Target
from upconv.kernels import winograd
from upconv.spec import Problem, SpecError

GOLDEN = Path(__file__).parent / "golden" / "plans.txt"
PRETENDED = Target("avx2", "x86_64-unknown-linux-gnu", "haswell", "", 32, 16, 32 << 10, 512 << 10, masks=False)
LAYERS: dict[str, dict[str, Any]] = {
    "U-Net decoder": dict(size=(32, 24), in_channels=256, out_channels=256, kernel_size=4, stride=2, padding=1),
    "mask head": dict(size=(14, 14), batch=20, in_channels=256, out_channels=256, kernel_size=2, stride=2),
    "vocoder": dict(size=(800,), in_channels=256, out_channels=128, kernel_size=16, stride=8, padding=4),
    "ISTFT": dict(size=(200,), in_channels=514, out_channels=1, kernel_size=1024, stride=256, padding=512),
    "volume": dict(size=(8, 16, 16), in_channels=64, out_channels=32, kernel_size=3, stride=2, padding=1, output_padding=1),
    "depthwise": dict(size=(64, 64), in_channels=64, out_channels=64, groups=64, kernel_size=4, stride=2, padding=1),
    "to pixels": dict(
        size=(64, 64), batch=4, in_channels=64, out_channels=3, kernel_size=4, stride=2, padding=1, activation="tanh"
    ),
    "downsampling": dict(
        size=(12, 12), in_channels=16, out_channels=16, kernel_size=3, stride=2, padding=1, transposed=False, dtype="float64"
    ),
}


def problem_of(name: str) -> Problem:
    return runs.make(**LAYERS[name])


def test_golden_plans(update: bool) -> None:
    """For a pretended processor, so that they read the same everywhere; `pytest --update` writes them anew."""
    text = "\n\n".join(f"-- {name}\n{planner.make(problem_of(name), PRETENDED, 2)}" for name in LAYERS) + "\n"
    if update:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "plans have changed: look at them, and if they are meant, run pytest --update"


@pytest.mark.parametrize("name", LAYERS)
def test_every_other_kernel_has_a_reason_against_it(name: str) -> None:
    plan = planner.make(problem_of(name), PRETENDED, 2)
    others = {kernel.NAME for kernel in planner.CANDIDATES} - {plan.algorithm}
    assert {kernel for kernel, _ in plan.not_chosen} == others
    assert all(reason and not reason.endswith(".") for _, reason in plan.not_chosen)
    text = str(plan)
    for kernel, reason in plan.not_chosen:
        assert f"{kernel}: {reason}" in text


@given(problem=runs.problems(activations=True))
def test_any_layer_has_a_plan_that_explains_itself(problem: Problem) -> None:
    for threads in (1, 2):
        plan = planner.make(problem, PRETENDED, threads)
        lines = str(plan).splitlines()
        shapes = f"{problem.input_shape} -> {problem.output_shape} {problem.dtype}"
        assert lines[0] == f"{problem.spec}      {shapes}"
        assert [line.split()[0] for line in lines[:6]] == [
            str(problem.spec).split()[0],
            "kernel",
            "work",
            "traffic",
            "limit",
            "workspace",
        ]
        assert plan.kernel in plan.summary
        assert 1 <= plan.threads <= threads
        assert "\n" not in plan.summary
        assert plan == planner.make(replace(problem), PRETENDED, threads)


@given(problem=runs.problems())
def test_estimates_are_sound(problem: Problem) -> None:
    """A kernel's own figures: at least one task, a positive time, no less time on one thread than on two."""
    for kernel in planner.CANDIDATES:
        if kernel.rejects(problem, PRETENDED) is None:
            one, two = (kernel.blocking(problem, PRETENDED, n) for n in (1, 2))
            assert kernel.tasks(problem, two) >= 1
            assert kernel.macs(problem, one) >= 0
            assert 0 < kernel.cost(problem, two, PRETENDED, 2) <= 1.5 * kernel.cost(problem, one, PRETENDED, 1)
            assert kernel.bind(problem, one).tasks == kernel.tasks(problem, one)
            assert hash(kernel.packing(problem, one)) == hash(kernel.packing(problem, one))


def test_what_is_not_worth_waking_a_thread_for_is_planned_for_one() -> None:
    small, large = problem_of("downsampling"), problem_of("vocoder")
    assert planner.make(small, PRETENDED, 4) == planner.make(small, PRETENDED, 1)
    assert planner.make(large, PRETENDED, 4).threads == 4
    assert planner.make_last(small, PRETENDED, 4) == planner.make_last(small, PRETENDED, 1)


def test_a_plan_compiles_nothing_and_needs_no_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan compiled something")

    monkeypatch.setattr(jit, "get", refuse)
    monkeypatch.setattr(jit, "compile_object", refuse)
    planner.make.cache_clear()
    plan = upconv.plan((1, 33, 40, 41), (33, 35, 4, 4), stride=2)
    assert str(plan).startswith("ConvTranspose2d 33 -> 35, kernel 4x4, stride 2x2      (1, 33, 40, 41) -> (1, 35, 82, 84) float32")


def test_a_machine_without_code_and_a_batch_of_none_take_the_reference() -> None:
    plan = planner.make(problem_of("vocoder"), None, 2)
    assert (plan.algorithm, plan.module, plan.threads) == ("reference", None, 1)
    assert "no code can be made on this machine" in str(plan)
    empty = upconv.plan((0, 3, 5), (3, 2, 4), stride=2)
    assert (empty.algorithm, empty.note) == ("reference", "nothing to compute")
    assert str(empty).splitlines()[0] == "ConvTranspose1d 3 -> 2, kernel 4, stride 2      (0, 3, 5) -> (0, 2, 12) float32"


def test_padding_modes_say_what_is_done_around_the_kernel() -> None:
    mode = dict(padding=1, padding_mode="circular")
    assert "its border is folded back by NumPy (circular)" in str(upconv.plan((1, 3, 9), (3, 2, 3), **mode))
    assert "x is padded by NumPy first (circular)" in str(upconv.plan((1, 3, 9), (2, 3, 3), transposed=False, **mode))


def test_arrays_and_shapes_of_either_kind_give_the_same_plan() -> None:
    x, w = np.ones((2, 3, 9), np.float32), np.ones((3, 2, 4), np.float32)
    assert upconv.plan(x, w, stride=2) == upconv.plan((2, 3, 9), [3, 2, 4], stride=2)
    assert upconv.plan((3, 9), w, stride=2) == upconv.plan((1, 3, 9), w, stride=2)
    assert upconv.plan(x, w, stride=2, output_size=21) == upconv.plan(x, w, stride=2, output_padding=1)
    assert upconv.plan(x, w, dtype="float64").problem.dtype == "float64"
    assert upconv.plan((1, 6, 9), (6, 2, 4), groups=3).problem.spec.out_channels == 6


NO_LAYER = "x of shape {} and weight of shape {} are no layer: give (N, C, *spatial) and torch's weight"
WRONG: list[tuple[tuple[Any, Any], dict[str, Any], str]] = [
    (((2, 3, 9), 5), {}, "weight is 5: give an array or its shape"),
    (
        ((2, 3, 9), (3, 2)),
        {},
        NO_LAYER.format((2, 3, 9), (3, 2)),
    ),
    (((9,), (3, 2, 4)), {}, NO_LAYER.format((9,), (3, 2, 4))),
    (((2, 4, 9), (3, 2, 4)), {}, "x has 4 channels (shape (2, 4, 9)) and weight of shape (3, 2, 4) takes 3"),
    (((2, 3, 9), (3, 2, 4)), {"dtype": "float16"}, "dtype is 'float16': use float32 or float64"),
    (((2, 3, 9), (3, 2, 4)), {"stride": 0}, "stride is 0: it must be at least 1"),
    (((2, 3, 9), (3, 2, 4)), {"groups": 2}, "in_channels 3 is not divisible by groups 2"),
    (
        ((2, 3, 1), (3, 2, 2)),
        {"padding": 1},
        "ConvTranspose1d 3 -> 2, kernel 2, padding 1 on input 1 gives output (0,): every size must be at least 1; "
        "use less padding, a larger kernel or a larger input",
    ),
]


@pytest.mark.parametrize(("shapes", "arguments", "text"), WRONG)
def test_wrong_arguments_are_refused_as_a_call_would(shapes: tuple[Any, Any], arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError) as refused:
        upconv.plan(*shapes, **arguments)
    assert str(refused.value) == text


SERVER = Target("avx512", "x86_64-unknown-linux-gnu", "sapphirerapids", "", 64, 32, 48 << 10, 2 << 20, masks=True, fmas=2)
TWICE: dict[str, Any] = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}


def test_sums_beyond_the_near_caches_count_on_intels_servers() -> None:
    """A channel of stride 32 has 3 MB of Winograd's sums: such layers run by direct sums there, those of stride 8 do not."""
    zen = replace(SERVER, cpu="znver4", l1=32 << 10, l2=1 << 20, fmas=1)
    for target, stride, algorithm in ((SERVER, 32, "direct"), (zen, 32, "winograd"), (SERVER, 8, "winograd")):
        layer = runs.make(size=(12, 16), in_channels=21, out_channels=21, kernel_size=2 * stride, stride=stride)
        assert planner.make(layer, target, 2).algorithm == algorithm


def test_a_single_tile_of_weights_transformed_as_they_are_read_is_left_to_others_on_intels_servers() -> None:
    """96 -> 320 on one image of 4 x 4 took 2.1 times as long by it; several tiles are its own."""
    alone = runs.make(size=(4, 4), in_channels=96, out_channels=320, **TWICE)
    several = runs.make(size=(8, 8), in_channels=64, out_channels=320, **TWICE)
    assert planner.make(alone, SERVER, 2).algorithm != "winograd_streamed"
    assert planner.make(several, SERVER, 2).algorithm == "winograd_streamed"


@pytest.mark.parametrize("channels", [16, 24, 32, 48, 64, 128])
def test_chunks_of_few_output_channels_fill_register_tiles(channels: int) -> None:
    """32 -> 32 on 64 x 64 takes a tenth less in blocks of 288 tiles by 8 channels than in tiles of 4 rows."""
    how = winograd.blocking(runs.make(size=(64, 64), in_channels=channels, out_channels=channels, **TWICE), SERVER, 2)
    assert how.tile.rows >= 8
    assert how.chunk % how.tile.rows == 0


# -- sizes compile nothing -------------------------------------------------------------------------------------------------------


COUNT = """
import numpy as np, upconv
from upconv.codegen import jit
compiled = []
compile_object = jit.compile_object
jit.compile_object = lambda *a: compiled.append(1) or compile_object(*a)
transposed, weight_shape, shortest, arguments = {layer}
call = upconv.conv_transpose if transposed else upconv.conv
weight = np.ones(weight_shape, np.float32)
channels = weight_shape[0] if transposed else weight_shape[1]
kernels, seen = set(), []
for turn in range(100):
    length = shortest + turn + (turn > 80) * 97 * (turn - 80)
    if len(weight_shape) > 3: length = min(length, 300)
    x = np.ones((1 + turn % 3, channels, *(length,) * (len(weight_shape) - 2)), np.float32)
    before = len(compiled)
    call(x, weight, **arguments)
    if len(compiled) > before: seen.append(length)
    plan = upconv.plan(x, weight, transposed=transposed, **arguments)
    kernels.add((plan.algorithm, plan.kernel))
most = max(sum(algorithm == other for other, _ in kernels) for algorithm, _ in kernels)
print(len(compiled), len(kernels), most, seen)
"""

ONE_LAYER: dict[str, tuple[bool, tuple[int, ...], int, dict[str, Any]]] = {
    "k4s2": (True, (24, 16, 4), 2, dict(stride=2, padding=1)),
    "vocoder": (True, (32, 16, 16), 3, dict(stride=8, padding=4)),
    "k=s": (True, (16, 8, 5), 1, dict(stride=5)),
    "stride 1": (True, (8, 4, 3), 2, dict(padding=1)),
    "k2s2, 2-D": (True, (8, 4, 2, 2), 1, dict(stride=2)),
    "k4s2, 2-D": (True, (32, 16, 4, 4), 1, dict(stride=2, padding=1)),
    "convolution": (False, (8, 16, 3), 3, dict(stride=2, padding=1)),
    "long strides": (False, (8, 16, 5), 10, dict(stride=5)),
}


@pytest.mark.parametrize("name", ONE_LAYER)
def test_a_new_length_or_batch_compiles_nothing(name: str) -> None:
    """A hundred lengths, three batches: every kernel that plans choose among them is compiled once, its packing as well.

    The shortest has two positions: of a single one, whole phases or taps may meet only padding, which is another layer's code.
    """
    compiled, kernels, most, lengths = said(COUNT.format(layer=ONE_LAYER[name]), UPCONV_CACHE="off").split(" ", 3)
    around = 3  # the call, the weight's fingerprint and the workers' loop, once a process
    # one an algorithm, but for few positions, whose tiles have two, four, five or six columns, and Winograd's for few tiles of
    # images: streamed weights are met by one tile, or by up to four, eight and sixteen
    assert int(most) <= 4
    assert int(kernels) <= 9 + 2 * ("2-D" in name)
    assert int(compiled) <= 2 * int(kernels) + around, f"compiled at lengths {lengths}"


def test_code_parameters_do_not_hold_sizes() -> None:
    for kernel in planner.CANDIDATES:
        for name in LAYERS:
            problem = problem_of(name)
            if kernel.rejects(problem, PRETENDED):
                continue
            larger = tuple(2 * n + 1 for n in problem.input_size)
            other = replace(problem, batch=problem.batch + 2, input_size=larger, output_size=problem.spec.output_size(larger))
            if kernel.rejects(other, PRETENDED):
                continue
            ways = [(p, kernel.blocking(p, PRETENDED, 2)) for p in (problem, other)]
            parameters = [kernel.code_parameters(p, how).replace(repr(getattr(how, "tile", None)), "tile") for p, how in ways]
            assert parameters[0] == parameters[1], f"{kernel.NAME} writes other code for {larger} than for {problem.input_size}"


FIRST_CALL = """
import time
import numpy as np, upconv, upconv.functional, upconv.codegen.jit
x, w = np.ones((1, 64, 32, 24), "f4"), np.ones((64, 64, 4, 4), "f4")
before = time.perf_counter()
upconv.conv_transpose(x, w, stride=2, padding=1)
print(time.perf_counter() - before)
"""


@pytest.mark.alone
def test_first_calls_are_quick(tmp_path: Path) -> None:
    """Half a second from nothing, 50 ms from a warm cache; the bounds are three times that, for noisy machines."""
    place = {"UPCONV_CACHE_DIR": str(tmp_path)}
    cold = float(said(FIRST_CALL, **place))
    warm = min(float(said(FIRST_CALL, **place)) for _ in range(3))
    assert cold < 1.5
    assert warm < 0.15
    assert warm < cold


@pytest.mark.alone
def test_a_plan_is_found_again_at_once() -> None:
    problem = problem_of("U-Net decoder")
    planner.make(problem, PRETENDED, 2)
    before = time.perf_counter()
    for _ in range(1000):
        planner.make(problem, PRETENDED, 2)
    assert time.perf_counter() - before < 0.3
