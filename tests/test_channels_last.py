"""The kernels for arrays with their channels last: exact, within their buffers, and chosen where they are the faster way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import kernel_runs as runs
import upconv
from fences import Fenced
from upconv import planner
from upconv.codegen import target as targets
from upconv.kernels import depthwise_last, indirect, overlap_add_last, overlap_add_last_blocks, strassen_last, winograd_last
from upconv.spec import Problem

LEVELS = runs.levels()
every_kernel = pytest.mark.parametrize("kernel", planner.LAST, ids=lambda module: module.NAME)


def last(x: Any) -> Any:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def run(kernel: Any, problem: Problem, operands: runs.Operands, *how: Any) -> Any:
    """The output, in channels-first order."""
    got = runs.run_kernel(kernel, problem, replace(operands, x=last(operands.x)), *how)
    n, c, *size = problem.output_shape
    return np.moveaxis(got.reshape(n, *size, c), -1, 1)


def check(kernel: Any, problem: Problem, level: str = LEVELS[0], threads: int = 1, buffers: Any = None, bias: bool = True) -> None:
    """Integers come out exactly as the reference has them."""
    operands = runs.operands(problem, bias=bias)
    got = run(kernel, problem, operands, runs.target_of(level), threads, buffers)
    np.testing.assert_array_equal(got, operands.expected)


def takes(kernel: Any, problem: Problem, level: str = LEVELS[0]) -> bool:
    return kernel.rejects(problem, runs.target_of(level)) is None


@every_kernel
@settings(max_examples=90, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(problem=runs.problems(), bias=st.booleans(), threads=st.integers(1, 2))
def test_integers_come_out_exactly(kernel: Any, problem: Problem, bias: bool, threads: int) -> None:
    spec = problem.spec
    if kernel is depthwise_last:
        wide = replace(spec, **dict.fromkeys(("in_channels", "out_channels", "groups"), spec.in_channels + 7))
    else:
        more = (24, 32) if kernel is strassen_last else (9, 10)
        wide = replace(spec, in_channels=spec.in_channels * more[0], out_channels=spec.out_channels * more[1])
    problem = replace(problem, spec=wide)
    assume(prod(wide.weight_shape) <= 1 << 20 and takes(kernel, problem))
    check(kernel, problem, threads=min(threads, runs.threads_allowed()), bias=bias)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("channels", [16, 33, 63, 98, 200])
def test_patches_that_are_no_whole_tiles(channels: int, dtype: str, level: str) -> None:
    """What whole tiles of up to four vectors leave are one, two or three."""
    layer = dict(size=(3,), in_channels=5, out_channels=channels, kernel_size=21, stride=21)
    check(overlap_add_last, runs.make(dtype=dtype, **layer), level)


def test_patches_leave_any_number_of_vectors() -> None:
    """The layers above are such, on a target with tiles of four vectors."""
    target, left = targets.Target("avx512", "", "", "", 64, 32, 48 << 10, 2 << 20, masks=True), set()
    for channels, dtype in product((16, 33, 63, 98, 200), ("float32", "float64")):
        layer = dict(size=(3,), in_channels=5, out_channels=channels, kernel_size=21, stride=21)
        left.add(overlap_add_last_blocks.blocking(runs.make(dtype=dtype, **layer), target, 1).narrow)
    assert left == {0, 1, 2, 3}


EDGES: list[dict[str, Any]] = [
    dict(size=(5, 6), in_channels=4, out_channels=16, kernel_size=2, stride=2),
    dict(size=(7, 5), in_channels=9, out_channels=17, kernel_size=4, stride=2, padding=1, batch=2),
    dict(size=(7, 5), in_channels=9, out_channels=24, kernel_size=3, stride=2, padding=1, output_padding=1),
    dict(size=(1, 1), in_channels=7, out_channels=33, kernel_size=4, stride=1, batch=3),
    dict(size=(9,), in_channels=12, out_channels=40, kernel_size=16, stride=5, padding=3, groups=2),
    dict(size=(3, 4, 5), in_channels=5, out_channels=19, kernel_size=3, stride=(1, 2, 3), padding=1, dilation=2),
    dict(size=(11, 12), in_channels=6, out_channels=16, kernel_size=3, stride=2, padding=1, transposed=False),
    dict(size=(6, 6), in_channels=8, out_channels=31, kernel_size=5, stride=3, padding=2, dilation=1, transposed=False, batch=2),
    dict(size=(60, 70), in_channels=5, out_channels=16, kernel_size=2, stride=2),
    dict(size=(13, 11), in_channels=16, out_channels=40, kernel_size=3, padding=1, transposed=False),
    dict(size=(17, 15), in_channels=24, out_channels=40, kernel_size=3, stride=2, padding=1, transposed=False, groups=2),
    dict(size=(3, 4, 5), in_channels=9, out_channels=19, kernel_size=4, stride=2, padding=1, batch=2),
    dict(size=(26, 31), in_channels=9, out_channels=16, kernel_size=6, stride=2, output_padding=1),
    dict(size=(3, 5, 6), in_channels=18, out_channels=19, kernel_size=3, stride=2, padding=1, output_padding=1),
    dict(size=(7, 9, 8), in_channels=17, out_channels=24, kernel_size=(5, 3, 4), stride=2, padding=1, transposed=False),
    # of channels that can be halved
    dict(size=(5, 7), in_channels=36, out_channels=70, kernel_size=2, stride=2, batch=3),
    dict(size=(13, 3), in_channels=64, out_channels=42, kernel_size=(4, 1), stride=(2, 1), padding=(1, 0), output_padding=(1, 0)),
    dict(size=(1, 1), in_channels=32, out_channels=34, kernel_size=3, stride=4, output_padding=2, batch=5),
    dict(size=(3, 4, 5), in_channels=68, out_channels=64, groups=2, kernel_size=2, stride=2, batch=2),
    dict(size=(12, 10), in_channels=40, out_channels=48, kernel_size=2, stride=2, transposed=False),
    dict(size=(31,), in_channels=34, out_channels=32, kernel_size=3, padding=1, transposed=False, batch=2),
]


@every_kernel
@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", EDGES, ids=str)
def test_both_ends_of_every_buffer_are_guarded(kernel: Any, layer: dict[str, Any], dtype: str, level: str) -> None:
    problem = runs.make(dtype=dtype, **layer)
    if not takes(kernel, problem, level):
        pytest.skip(str(kernel.rejects(problem, runs.target_of(level))))
    for at_end in (False, True):
        check(kernel, problem, level, buffers=Fenced(at_end))


DEPTHWISE: list[dict[str, Any]] = [
    dict(size=(7, 5), channels=9, kernel_size=4, stride=2, padding=1, batch=2),
    dict(size=(7, 5), channels=41, kernel_size=3, stride=2, padding=1, output_padding=1),
    dict(size=(30,), channels=17, kernel_size=11, stride=5, padding=3),
    dict(size=(3, 4, 5), channels=24, kernel_size=3, stride=(1, 2, 3), padding=1, dilation=2),
    dict(size=(6, 7), channels=33, kernel_size=2, stride=3, padding=0, output_padding=2),
    dict(size=(11, 12), channels=16, kernel_size=3, stride=2, padding=1, transposed=False),
    dict(size=(8, 9), channels=40, kernel_size=5, padding=2, dilation=2, transposed=False, batch=3),
    dict(size=(40, 41), channels=10, kernel_size=4, stride=2, padding=1),
]


@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", DEPTHWISE, ids=str)
def test_depthwise_layers_stay_within_their_buffers(layer: dict[str, Any], dtype: str, level: str) -> None:
    channels = dict.fromkeys(("in_channels", "out_channels", "groups"), layer["channels"])
    problem = runs.make(dtype=dtype, **channels, **{k: v for k, v in layer.items() if k != "channels"})
    if not takes(depthwise_last, problem, level):
        pytest.skip(str(depthwise_last.rejects(problem, runs.target_of(level))))
    for at_end, threads in ((False, 1), (True, 2)):
        check(depthwise_last, problem, level, threads=min(threads, runs.threads_allowed()), buffers=Fenced(at_end))


@pytest.mark.parametrize("channels", [8, 9, 15, 16, 17, 24, 31, 32, 33, 39, 63, 64, 65])
def test_depthwise_channels_round_the_vectors_that_are_summed_together(channels: int) -> None:
    layer = dict.fromkeys(("in_channels", "out_channels", "groups"), channels)
    problem = runs.make(size=(5, 6), kernel_size=4, stride=2, padding=1, **layer)
    if takes(depthwise_last, problem):
        check(depthwise_last, problem)


def test_depthwise_tasks_are_bounded_in_number_and_workspace() -> None:
    for size, least in ((32, 12), (512, 12), (4096, 4000)):
        problem = runs.make(size=(size, size), in_channels=32, out_channels=32, groups=32, kernel_size=4, stride=2, padding=1)
        how = depthwise_last.blocking(problem, targets.host(), 2)
        assert least <= depthwise_last.tasks(problem, how) <= 1.1 * depthwise_last.MOST
        assert how.workspace_bytes <= 1 << 20


def test_depthwise_is_chosen_and_others_say_why_it_is_not() -> None:
    plan = plan_last((1, 256, 32, 32), 256, kernel_size=4, stride=2, padding=1, groups=256)
    assert plan is not None
    assert plan.algorithm == "depthwise_last"
    assert "channels last, 4 vectors of channels at a time" in str(plan)

    def reason(**layer: Any) -> str | None:
        return depthwise_last.rejects(runs.make(size=(5, 6), kernel_size=4, stride=2, **layer), targets.host())

    assert reason(in_channels=32, out_channels=32) == "32 input channels a group"
    assert reason(in_channels=32, out_channels=64, groups=32) == "2 output channels a group: they are no neighbours of their inputs"
    assert reason(in_channels=2, out_channels=2, groups=2) == "2 channels: fewer than lanes"


@every_kernel
@pytest.mark.parametrize("channels", [8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33])
def test_output_channels_round_the_tile(kernel: Any, channels: int) -> None:
    problem = runs.make(size=(7, 9), in_channels=10, out_channels=channels, kernel_size=3, stride=2, padding=1)
    if takes(kernel, problem):
        check(kernel, problem)


@every_kernel
@pytest.mark.parametrize("channels", [8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33])
def test_input_channels_round_the_vector(kernel: Any, channels: int) -> None:
    for transposed in (True, False):
        problem = runs.make(transposed, size=(7, 9), in_channels=channels, out_channels=16, kernel_size=4, stride=2, padding=1)
        if takes(kernel, problem):
            check(kernel, problem)


@every_kernel
@pytest.mark.parametrize("positions", [1, 5, 6, 7, 11, 12, 13, 47, 48, 49, 300])
def test_positions_round_the_tile_and_the_block(kernel: Any, positions: int) -> None:
    for transposed in (True, False):
        channels = {depthwise_last: (16, 16), strassen_last: (34, 34)}.get(kernel, (11, 16))
        layer = dict(in_channels=channels[0], out_channels=channels[1], groups=16 if kernel is depthwise_last else 1)
        check(kernel, runs.make(transposed, size=(positions,), kernel_size=3, padding=1, **layer), threads=2)


@settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(problem=runs.problems(), patches=st.sampled_from((0.5, 0.02, 0.001)), threads=st.integers(1, 2))
def test_few_outputs_come_out_exactly_whatever_the_block(problem: Problem, patches: float, threads: int) -> None:
    spec = replace(problem.spec, in_channels=problem.spec.in_channels * 3)
    problem = replace(problem, spec=spec)
    assume(takes(overlap_add_last, problem))
    with blocks_of(patches):
        check(overlap_add_last, problem, threads=min(threads, runs.threads_allowed()))


FEW: list[dict[str, Any]] = [
    dict(size=(9, 14), out_channels=3, kernel_size=4, stride=2, padding=1, batch=3),
    dict(size=(9, 14), out_channels=1, kernel_size=2, stride=2),
    dict(size=(7, 9), out_channels=1, kernel_size=9, stride=2, padding=4, output_padding=1),
    dict(size=(7, 9), out_channels=2, kernel_size=3, stride=4, padding=1, output_padding=3),
    dict(size=(40,), out_channels=2, kernel_size=11, stride=5, padding=3),
    dict(size=(3, 4, 5), out_channels=1, kernel_size=4, stride=2, padding=1, batch=2),
    dict(size=(7, 6), out_channels=5, kernel_size=3, padding=2, dilation=(2, 1)),
    dict(size=(8, 9), out_channels=3, kernel_size=3, padding=1, transposed=False),
    dict(size=(8, 9), out_channels=1, kernel_size=2, padding=3, transposed=False, batch=2),
]


@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layer", FEW, ids=str)
def test_patches_stay_within_their_buffers_in_blocks_of_any_size(layer: dict[str, Any], dtype: str, level: str) -> None:
    problem = runs.make(dtype=dtype, in_channels=5, **layer)
    if not takes(overlap_add_last, problem, level):
        pytest.skip(str(overlap_add_last.rejects(problem, runs.target_of(level))))
    for patches in (0.5, 0.02, 0.001):
        for at_end in (False, True):
            with blocks_of(patches):
                check(overlap_add_last, problem, level, buffers=Fenced(at_end))


def test_patches_are_bounded_and_blocks_cut_no_more_than_they_must() -> None:
    size, half = targets.host().l2, overlap_add_last_blocks.PATCHES
    for shape, out in (((320, 320), 1), ((128, 128), 3), ((270, 480), 5)):
        problem = runs.make(size=shape, in_channels=64, out_channels=out, kernel_size=4, stride=2, padding=1)
        how = overlap_add_last.blocking(problem, targets.host(), 2)
        assert how.patch_bytes <= size * half * 1.05
        again = overlap_add_last.macs(problem, how) / (prod(shape) * how.pitch * 64)
        assert 1 <= again < 1.25, (shape, how)  # what two blocks both compute


@contextmanager
def blocks_of(patches: float) -> Iterator[None]:
    """Blocks whose patches take this part of the second-level cache."""
    before, overlap_add_last_blocks.PATCHES = overlap_add_last_blocks.PATCHES, patches
    overlap_add_last.blocking.cache_clear()
    try:
        yield
    finally:
        overlap_add_last_blocks.PATCHES = before
        overlap_add_last.blocking.cache_clear()


@pytest.mark.parametrize("tiles", [1, 2, 5, 6, 7, 11, 12, 13, 23, 24, 25, 47, 48, 49])
def test_tiles_round_the_register_tile_and_the_block(tiles: int) -> None:
    layer: dict[str, Any] = dict(in_channels=9, out_channels=9, kernel_size=(1, 2), padding=((0, 0), (1, 0)))
    problem = runs.make(False, size=(1, 3 * tiles), **layer)
    if takes(winograd_last, problem):
        check(winograd_last, problem, threads=2)


def test_many_weights_are_met_by_larger_blocks() -> None:
    for channels, most in ((32, winograd_last.FEW), (512, winograd_last.MANY)):
        problem = runs.make(size=(40, 40), in_channels=channels, out_channels=channels, kernel_size=4, stride=2, padding=1)
        if takes(winograd_last, problem):
            assert most / 2 < winograd_last.blocking(problem, targets.host(), 2).block <= most


def test_deep_sums_have_smaller_blocks_so_that_the_workspace_is_bounded() -> None:
    for kernel, channels in ((4, 4096), (16, 512), (16, 2048)):
        problem = runs.make(size=(64, 64), in_channels=channels, out_channels=16, kernel_size=kernel, stride=2)
        if takes(winograd_last, problem):
            how = winograd_last.blocking(problem, targets.host(), 2)
            assert how.workspace_bytes < 1.05 * winograd_last.WORKSPACE or how.block == how.tile.turned


@every_kernel
@pytest.mark.parametrize("activation", runs.ACTIVATIONS[1:], ids=str)
def test_activations(kernel: Any, activation: Any) -> None:
    groups = 20 if kernel is depthwise_last else 1
    layer: dict[str, Any] = dict(in_channels=20, out_channels=20, groups=groups, kernel_size=3, stride=2)
    problem = runs.make(size=(6, 7), activation=activation, **layer)
    operands = runs.operands(problem, integers=False)
    got = run(kernel, problem, operands, runs.target_of(LEVELS[0]))
    np.testing.assert_allclose(got, operands.expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("channels", [20, 21])
def test_many_weights_that_few_positions_meet_are_read_in_streams(channels: int) -> None:
    target = runs.small(runs.target_of(LEVELS[0]))
    for batch, size in product((1, 3), ((1, 1), (2, 2))):
        layer: dict[str, Any] = dict(in_channels=channels, out_channels=129, kernel_size=4, stride=2, padding=1)
        problem = runs.make(batch=batch, size=size, **layer)
        assert indirect.blocking(problem, target, 2).streams == (4 if channels == 20 else 1)
        operands = runs.operands(problem)
        np.testing.assert_array_equal(run(indirect, problem, operands, target, runs.threads_allowed()), operands.expected)


@pytest.mark.parametrize("kernel", [indirect, overlap_add_last, depthwise_last], ids=lambda module: module.NAME)
@pytest.mark.parametrize("channels", [1, 3, 8, 16])
def test_a_nan_stays_where_the_direct_sum_has_it(kernel: Any, channels: int) -> None:
    groups = 8 if kernel is depthwise_last and channels == 8 else 1
    problem = runs.make(size=(6, 7), in_channels=8, out_channels=channels, groups=groups, kernel_size=3, stride=2)
    if not takes(kernel, problem):
        pytest.skip(str(kernel.rejects(problem, runs.target_of(LEVELS[0]))))
    operands = runs.operands(problem)
    operands.x[0, 3, 2, 2] = np.nan
    expected = upconv.kernels.reference.forward(problem.spec, operands.x, operands.weight, operands.bias, problem.output_size)
    np.testing.assert_array_equal(run(kernel, problem, operands, runs.target_of(LEVELS[0])), expected)


def plan_last(shape: tuple[int, ...], out: int, **layer: Any) -> planner.Plan | None:
    spec = upconv.ConvSpec.make(transposed=True, in_channels=shape[1], out_channels=out, rank=len(shape) - 2, **layer)
    problem = Problem(spec, shape[0], shape[2:], spec.output_size(shape[2:]))
    return planner.make_last(problem, targets.host(), 2)


def test_it_is_chosen_where_reordering_costs_more() -> None:
    plan = plan_last((1, 195, 80, 80), 195, kernel_size=2, stride=2)
    assert plan is not None
    assert plan.algorithm in ("indirect", "overlap_add_last")  # as large as the second-level cache is
    assert "channels last" in str(plan)
    assert "reordering included" in str(plan)
    plan = plan_last((1, 1024, 2, 2), 512, kernel_size=4, stride=2, padding=1)
    assert plan is not None
    assert plan.algorithm == "indirect"
    assert plan_last((1, 1024, 8, 8), 512, kernel_size=4, stride=2, padding=1) is None  # Winograd, few tiles of many channels


@pytest.mark.skipif(targets.host().lanes(4) < 8, reason="short vectors leave less to save")
def test_halves_are_multiplied_where_there_are_many_channels() -> None:
    plan = plan_last((2, 512, 32, 32), 512, kernel_size=2, stride=2)
    assert plan is not None
    assert plan.algorithm == "strassen_last"
    assert "channels last, seven products of halves in place of eight, blocks of" in str(plan)
    assert plan.module.macs(plan.problem, plan.blocking) * 2 < 0.92 * plan.problem.flops


def test_few_outputs_are_taken_as_patches() -> None:
    for shape, out in (((16, 64, 32, 32), 3), ((1, 64, 320, 320), 1)):
        plan = plan_last(shape, out, kernel_size=4, stride=2, padding=1)
        assert plan is not None
        assert plan.algorithm == "overlap_add_last"
        assert f"channels last, patches of 16 taps in {16 * out} of {16 * out} lanes" in str(plan)


def test_winograd_is_chosen_where_products_are_worth_saving_and_left_out_where_results_are_to_be_precise() -> None:
    plan = plan_last((1, 256, 92, 160), 64, kernel_size=4, stride=2, padding=1)
    assert plan is not None
    assert plan.algorithm == "winograd_last"
    assert "channels last, the 4 phases share one input transform" in str(plan)
    assert "indirect: " in str(plan)
    precise = planner.make_last(plan.problem, targets.host(), 2, precise=True)
    assert precise is not None
    assert precise.algorithm == "indirect"


@every_kernel
def test_new_sizes_pack_and_compile_nothing_new(kernel: Any) -> None:
    spec = upconv.ConvSpec.make(transposed=True, in_channels=32, out_channels=32, kernel_size=4, stride=2, padding=1, rank=2)
    found = set()
    for n in range(2, 30):
        problem = Problem(spec, 1, (n, n + 1), spec.output_size((n, n + 1)))
        if kernel.rejects(problem, targets.host()) is None:
            how = kernel.blocking(problem, targets.host(), 2)
            found.add((kernel.code_parameters(problem, how), kernel.packing(problem, how)))
    assert len(found) <= 1 + (kernel is winograd_last)  # windows of four, and of six in the last dimension
