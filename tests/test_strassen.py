"""Strassen's products of halves and of quarters: the identity, images that stay apart, and when plans take it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import kernel_runs as runs
import upconv
from upconv.codegen import target as targets
from upconv.codegen.ir import Function, Value
from upconv.kernels import strassen, strassen_last, strassen_twice, winograd, winograd_cuts
from upconv.kernels.strassen_products import LEFT, PRODUCTS, RIGHT, SUM, left, places, row_and_column
from upconv.kernels.strassen_sums import Sums, emit_right

HOST = targets.host()
LAYERS = {
    "k2s2": dict(size=(5, 7), in_channels=16, out_channels=12, kernel_size=2, stride=2),
    "k4s2 of rows": dict(size=(13, 6), in_channels=16, out_channels=8, kernel_size=(4, 1), stride=(2, 1)),
    "k3s2": dict(size=(70,), in_channels=8, out_channels=16, kernel_size=3, stride=2, padding=1),
    "convolution k2s2": dict(size=(10, 9), transposed=False, in_channels=8, out_channels=16, kernel_size=2, stride=2),
}
BOTH = pytest.mark.parametrize("kernel", [strassen, strassen_twice], ids=lambda module: module.NAME)
needs_vectors = pytest.mark.skipif(HOST.lanes(4) < 4, reason="vectors too short on this machine")


def test_seven_products_are_the_product_of_any_two_matrices_of_two_by_two() -> None:
    assert LEFT.shape == RIGHT.shape == SUM.T.shape == (PRODUCTS[2], 4)
    for i, j in np.ndindex(4, 4):  # both sides are linear in a and in b
        a, b = np.eye(4, dtype=int)[i], np.eye(4, dtype=int)[j]
        np.testing.assert_array_equal(SUM @ ((LEFT @ a) * (RIGHT @ b)), (a.reshape(2, 2) @ b.reshape(2, 2)).ravel())


class Numbers(Function):
    """A function whose values are numbers: what is emitted is done at once."""

    def number(self, value: float) -> Value:
        return Value(self, repr(float(value)), "float")

    def fadd(self, a: Value, b: Value) -> Value:
        return self.number(float(a.text) + float(b.text))

    def fsub(self, a: Value, b: Value) -> Value:
        return self.number(float(a.text) - float(b.text))

    def splat(self, value: Any, type_: str) -> Value:
        return self.number(value)

    def fmul(self, a: Value, b: Value) -> Value:
        return self.number(float(a.text) * float(b.text))


@pytest.mark.parametrize("slices", [2, 4])
def test_emitted_sums_and_products_are_the_product_of_any_two_matrices(slices: int) -> None:
    f, rng = Numbers("sums", []), np.random.default_rng(0)
    a, b = (rng.integers(-9, 10, (slices, slices)) for _ in range(2))
    multiplied = [float(value.text) for value in emit_right(f, [f.number(v) for v in b.ravel()])]
    assert len(multiplied) == PRODUCTS[slices]
    products = (left(slices) @ a.ravel()) * multiplied
    sums = Sums(f, lambda n: f.number(products[n]))
    got = {row_and_column(place): float(sums.emit(place).text) for place in places(slices)}
    assert got == {at: value for at, value in np.ndenumerate(a @ b)}


@needs_vectors
@BOTH
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("special", [np.nan, np.inf, 3e30])
def test_no_image_of_a_batch_touches_another(kernel: Any, name: str, special: float) -> None:
    """Slices of tiles mix, but those of one image: what a broken image holds does not reach its neighbours."""
    problem = runs.make(batch=3, **LAYERS[name])
    assert strassen.rejects(problem, HOST) is None
    if kernel is strassen_twice and name not in ("k2s2", "convolution k2s2"):
        assert kernel.rejects(problem, HOST) == "4 points: 49 products at each would leave the caches"
        return
    assert kernel.rejects(problem, HOST) is None
    plain = runs.operands(problem)
    x = plain.x.copy()
    x[1] = special
    with np.errstate(over="ignore", invalid="ignore"):
        got = runs.run_kernel(kernel, problem, runs.Operands(x, plain.weight, plain.bias, plain.expected), HOST)
    np.testing.assert_array_equal(got[[0, 2]], plain.expected[[0, 2]])


@needs_vectors
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 1)])
def test_no_image_of_a_batch_touches_another_where_channels_are_last(size: tuple[int, int]) -> None:
    problem = runs.make(batch=3, size=size, in_channels=64, out_channels=64, kernel_size=2, stride=2)
    given, shape = runs.operands(problem), problem.output_shape
    x = np.ascontiguousarray(np.moveaxis(given.x, 1, -1))
    x[1] = np.nan
    got = runs.run_kernel(strassen_last, problem, runs.Operands(x, given.weight, given.bias, given.expected), HOST)
    got = np.moveaxis(got.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    np.testing.assert_array_equal(got[[0, 2]], given.expected[[0, 2]])
    assert np.isnan(got[1]).all()


@pytest.fixture
def shared() -> Iterator[None]:
    before = winograd_cuts.IN_PARTS
    runs.share_blocks()
    yield
    runs.share_blocks(before)


SMALL = [(1, 90), (2, 200), (5, 61), (7, 3), (16, 33), (25, 100), (49, 20), (100, 9), (196, 20)]
"""Positions of an image, and images: of which there are fewer than slices, that these divide and do not; one block and several."""


@needs_vectors
@BOTH
@pytest.mark.parametrize(("size", "batch"), SMALL)
@pytest.mark.parametrize("threads", [1, 2])
def test_small_images_share_blocks_in_parts_that_stay_apart(kernel: Any, size: int, batch: int, threads: int, shared: None) -> None:
    problem = runs.make(batch=batch, size=(size,), in_channels=16, out_channels=12, kernel_size=2, stride=2)
    how, given = kernel.blocking(problem, HOST, threads), runs.operands(problem)
    parts, length = winograd.image_parts(problem, how)
    assert (parts, length) == (how.slices, -(-size // how.slices))
    assert how.cut.length == batch * parts * length
    x = given.x.copy()
    x[1::2] = np.nan  # every other image
    got = runs.run_kernel(kernel, problem, runs.Operands(x, given.weight, given.bias, given.expected), HOST, threads)
    np.testing.assert_array_equal(got[::2], given.expected[::2])
    assert np.isnan(got[1::2]).all()


@pytest.mark.skipif(HOST.lanes(4) < 8, reason="short vectors are full")
def test_images_of_14_x_14_take_an_eighth_less_of_the_products() -> None:
    """Mask R-CNN's head: in vectors in turn, each image of 196 positions would have 12.25 vectors, and compute 14."""
    problem = runs.make(batch=20, size=(14, 14), in_channels=256, out_channels=256, kernel_size=2, stride=2)
    how = strassen.blocking(problem, HOST, 2)
    assert strassen.macs(problem, how) * 2 < 0.9 * problem.flops
    large = runs.make(batch=2, size=(64, 64), in_channels=256, out_channels=256, kernel_size=2, stride=2)
    assert strassen.blocking(large, HOST, 2).cut.parts == 2  # whose parts would lie far apart


@needs_vectors
def test_channels_that_cannot_be_halved_or_quartered_are_refused_with_the_reason() -> None:
    for c, m in ((9, 16), (16, 9)):
        problem = runs.make(size=(9,), in_channels=c, out_channels=m, kernel_size=2, stride=2)
        assert strassen.rejects(problem, HOST) == f"{c} -> {m} channels a group cannot be halved"
    for c, m in ((10, 16), (16, 10)):
        problem = runs.make(size=(9,), in_channels=c, out_channels=m, kernel_size=2, stride=2)
        assert strassen.rejects(problem, HOST) is None
        assert strassen_twice.rejects(problem, HOST) == f"{c} -> {m} channels a group cannot be quartered"


@needs_vectors
def test_winograd_in_two_dimensions_is_left_alone() -> None:
    problem = runs.make(size=(9, 9), in_channels=16, out_channels=16, kernel_size=4, stride=2)
    assert strassen.rejects(problem, HOST) == "16 points: seven products at each would leave the caches"


@needs_vectors
def test_a_plan_counts_an_eighth_less_and_says_why() -> None:
    problem = runs.make(size=(32, 32), in_channels=512, out_channels=256, kernel_size=2, stride=2)
    how = strassen.blocking(problem, HOST, 1)
    assert strassen.macs(problem, how) * 2 < 0.93 * problem.flops  # padding of tiles included
    assert "seven products of halves in place of eight" in strassen.describe(problem, how)
    how = strassen_twice.blocking(problem, HOST, 1)
    assert strassen_twice.macs(problem, how) * 2 < 0.93 * 0.93 * problem.flops
    assert "49 products of quarters in place of 64" in strassen_twice.describe(problem, how)


def _plan(**more: Any) -> Any:
    return upconv.plan((1, 512, 32, 32), (512, 512, 2, 2), stride=2, **more)


@pytest.mark.skipif(HOST.name != "avx2", reason="what the estimates choose on other processors is theirs")
def test_large_layers_whose_kernel_is_the_stride_take_it_unless_results_are_to_be_precise() -> None:
    assert _plan().algorithm in ("strassen", "strassen_twice")
    upconv.set_precise(True)
    try:
        assert _plan().algorithm == "direct"
        assert dict(_plan().not_chosen)["strassen"].startswith("precise results are asked for")
    finally:
        upconv.set_precise(False)
    assert upconv.plan((1, 32, 32, 32), (32, 32, 2, 2), stride=2).algorithm == "direct"
