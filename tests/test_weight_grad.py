"""The compiled weight gradient: exact on integers beside the reference, inside its buffers, the same every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import kernel_runs as runs
from fences import Fenced
from upconv import execute, execute_weight
from upconv.codegen import jit, threads
from upconv.kernels import job as jobs
from upconv.kernels import reference, weight_grad
from upconv.shapes.dual import dual
from upconv.spec import Problem


def operands(problem: Problem, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Small integers, so that every sum is exact."""
    rng = np.random.default_rng(seed)
    shapes = (problem.input_shape, problem.output_shape)
    x, grad = (rng.integers(-4, 5, shape).astype(problem.dtype) for shape in shapes)
    return x, grad


def check(problem: Problem, target: Any = None) -> None:
    x, grad = operands(problem)
    found = execute_weight.gradient(problem.spec, x, grad, target or execute.target())
    expected = reference.weight_gradient(problem.spec, x, grad)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@given(problem=runs.problems(), level=st.sampled_from(runs.levels()))
def test_drawn_layers_are_exact(problem: Problem, level: str) -> None:
    check(problem, runs.target_of(level))


WIDE = [
    dict(size=(300,), in_channels=40, out_channels=70, kernel_size=16, stride=8, padding=4, batch=3),
    dict(size=(4, 4), in_channels=130, out_channels=96, kernel_size=4, stride=2, padding=1, batch=9),
    dict(size=(6, 5, 7), in_channels=20, out_channels=33, kernel_size=2, stride=2, batch=2),
    dict(size=(33, 29), in_channels=64, out_channels=3, kernel_size=4, stride=2, padding=1, batch=2),
    dict(size=(40, 40), in_channels=24, out_channels=24, kernel_size=3, padding=1, groups=24, batch=2),
    dict(size=(13,), in_channels=12, out_channels=10, kernel_size=300, stride=100, batch=4),
    dict(size=(1, 1), in_channels=100, out_channels=60, kernel_size=4, batch=20),
    dict(size=(1, 1), in_channels=64, out_channels=48, kernel_size=4, stride=2, padding=1),
]


@pytest.mark.parametrize("layer", WIDE, ids=lambda layer: f"{layer['in_channels']}-{layer['kernel_size']}-{len(layer['size'])}d")
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_many_channels_and_threads(layer: dict[str, Any], transposed: bool, count: int) -> None:
    try:
        problem = runs.make(transposed=transposed, **layer)
    except ValueError:
        pytest.skip("smaller than its kernel")
    before = threads.get_num_threads()
    threads.set_num_threads(min(count, runs.threads_allowed()))
    try:
        check(problem)
    finally:
        threads.set_num_threads(before)


MIRRORED = [
    dict(size=(20, 17), in_channels=64, out_channels=3, kernel_size=3, padding=1, batch=2),
    dict(size=(50,), in_channels=36, out_channels=2, kernel_size=7, padding=((6, 0),), dilation=2, groups=2),
    dict(size=(5, 6, 4), in_channels=16, out_channels=1, kernel_size=(1, 2, 3), padding=(0, 1, 2), dtype="float64"),
]


@pytest.mark.parametrize("layer", MIRRORED, ids=["2d", "1d", "3d"])
@pytest.mark.parametrize("transposed", [True, False])
def test_few_channels_change_places_with_many(layer: dict[str, Any], transposed: bool) -> None:
    channels = (layer["in_channels"], layer["out_channels"])
    wide, narrow = channels[::-1] if transposed else channels
    check(runs.make(transposed=transposed, **{**layer, "in_channels": wide, "out_channels": narrow}))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("transposed", [True, False])
def test_padding_modes(mode: str, transposed: bool) -> None:
    layer = dict(in_channels=5, out_channels=7, kernel_size=3, padding=(2, 1), padding_mode=mode)
    check(runs.make(transposed=transposed, size=(7, 9), batch=2, **layer))


def test_the_sum_does_not_depend_on_which_thread_is_first() -> None:
    problem = runs.make(size=(4000,), in_channels=8, out_channels=16, kernel_size=4, stride=2, batch=8)
    rng = np.random.default_rng(3)
    x = rng.standard_normal(problem.input_shape).astype(np.float32)
    grad = rng.standard_normal(problem.output_shape).astype(np.float32)
    first = execute.weight_gradient(problem.spec, x, grad)
    for _ in range(20):
        np.testing.assert_array_equal(execute.weight_gradient(problem.spec, x, grad), first)


def test_rounding_is_that_of_a_sum_in_blocks() -> None:
    problem = runs.make(size=(64, 64), in_channels=32, out_channels=16, kernel_size=3, stride=2, batch=4)
    rng = np.random.default_rng(4)
    x, grad = (rng.standard_normal(shape) for shape in (problem.input_shape, problem.output_shape))
    exact = reference.weight_gradient(problem.spec, x, grad)
    found = execute.weight_gradient(problem.spec, x.astype(np.float32), grad.astype(np.float32))
    assert np.abs(found - exact).max() < 2e-6 * np.sqrt(np.mean(exact**2)) * 10


def test_nothing_outside_the_outputs_is_multiplied() -> None:
    """Every output of a stride-2 layer of kernel 1 reads an even column: NaN in the odd ones goes nowhere."""
    problem = runs.make(transposed=False, size=(9, 9), in_channels=3, out_channels=17, kernel_size=1, stride=2)
    x, grad = operands(problem)
    expected = reference.weight_gradient(problem.spec, x, grad)
    x[:, :, 1::2] = x[:, :, :, 1::2] = np.nan
    np.testing.assert_array_equal(execute.weight_gradient(problem.spec, x, grad), expected)


def run_between(buffers: Fenced, problem: Problem, target: Any, count: int) -> None:
    """The convolution's weight gradient with every buffer of its own between forbidden pages."""
    how = weight_grad.blocking(problem, target, count)
    name = weight_grad.code_name(problem, how, target)
    code = jit.get(name, weight_grad.code_parameters(how), ("entry",), lambda: weight_grad.emit(how), target)
    bound = weight_grad.bind(problem, how)
    x, grad = operands(problem)
    expected = reference.weight_gradient(problem.spec, x, grad)
    found = buffers.room(problem.spec.weight_shape, problem.dtype)
    counters = buffers.room(bound.tables["counters"].shape, np.int64)
    counters[:] = 0
    arrays = {
        "x": buffers.hold(x),
        "g": buffers.hold(grad),
        "w": found,
        "offsets": buffers.hold(bound.tables["offsets"]),
        "counters": counters,
        "workspace": buffers.workspace(how.workspace_bytes * count),
        "partial": buffers.workspace(how.partial_bytes),
    }
    job = buffers.workspace(-(-len(weight_grad.SLOTS.names) * 8 // 64) * 64).view(np.int64)
    job[:] = 0
    for slot, value in {**bound.slots, **{k: a.ctypes.data for k, a in arrays.items()}}.items():
        job[weight_grad.SLOTS.index[slot]] = value
    job[jobs.TASKS] = bound.tasks
    threads.run(code["entry"], job.ctypes.data, count, target)
    np.testing.assert_array_equal(found, expected)
    assert not counters.any()
    assert buffers.untouched()


@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("layer", WIDE, ids=lambda layer: f"{layer['in_channels']}-{layer['kernel_size']}-{len(layer['size'])}d")
def test_no_byte_outside_the_buffers(layer: dict[str, Any], at_end: bool, level: str) -> None:
    forward = runs.make(**layer)
    spec = dual(forward.spec, forward.input_size)
    problem = Problem(spec, forward.batch, forward.output_size, forward.input_size, forward.dtype)
    run_between(Fenced(at_end), problem, runs.target_of(level), 1)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 31, 33])
@pytest.mark.parametrize("at_end", [False, True])
def test_no_byte_outside_at_any_length(size: int, at_end: bool) -> None:
    problem = runs.make(transposed=False, size=(size + 3,), in_channels=3, out_channels=size, kernel_size=4, padding=1, batch=3)
    run_between(Fenced(at_end), problem, execute.target(), runs.threads_allowed())


def test_a_new_length_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = dict(in_channels=16, out_channels=32, kernel_size=4, stride=2, padding=1)
    check(runs.make(size=(100,), **layer))
    monkeypatch.setattr(jit, "compile_object", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(jit, "_link", lambda *_: pytest.fail("linked"))
    for size in (3, 57, 1000):
        check(runs.make(size=(size,), **layer))


def test_workspace_is_bounded() -> None:
    layer = dict(in_channels=1024, out_channels=512, kernel_size=4, stride=2, padding=1)
    problem = runs.make(transposed=False, size=(64, 64), batch=64, **layer)
    for count in (1, 2, 16):
        how = weight_grad.blocking(problem, execute.target(), count)
        assert how.workspace_bytes * count + how.partial_bytes < 64 << 20


@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 3, 16, 4), (2, 4, 63), (1, 2, 64), (5, 2, 65), (2, 3, 5, 6, 7)])
@pytest.mark.parametrize("at_end", [False, True])
def test_bias_gradient(shape: tuple[int, ...], dtype: str, level: str, at_end: bool) -> None:
    grad = np.random.default_rng(5).integers(-9, 9, shape).astype(dtype)
    found = execute_weight.bias_gradient(Fenced(at_end).hold(grad), runs.target_of(level))
    np.testing.assert_array_equal(found, grad.sum(axis=(0, *range(2, grad.ndim))))
    assert found.dtype == grad.dtype
