"""Every kernel module against the reference: integers exactly, at sizes drawn and at the edges of its tiles."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import kernel_runs as runs
import upconv
from upconv.codegen.target import Target
from upconv.kernels import (
    direct,
    direct_blocks,
    direct_way,
    indirect,
    indirect_first,
    reference,
    register_tile,
    strassen,
    winograd,
    winograd_last,
)
from upconv.spec import Problem

LEVELS = runs.levels()
KERNELS = pytest.mark.parametrize("module", runs.KERNELS, ids=lambda m: m.NAME)
EXACT_KERNELS = pytest.mark.parametrize("module", [m for m in runs.KERNELS if runs.exact(m)], ids=lambda m: m.NAME)
PROTOCOL = (
    "NAME", "SLOTS", "rejects", "blocking", "code_name", "code_parameters", "emit", "weight_layout", "bind", "cost", "macs",
    "tasks", "packing", "describe",
)  # fmt: skip
few = settings(max_examples=12, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
many = settings(max_examples=36, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


def takes(module: Any, problem: Problem, level: str = LEVELS[0]) -> bool:
    return module.rejects(problem, runs.target_of(level)) is None


def check(module: Any, problem: Problem, level: str = LEVELS[0], threads: int = 1, bias: bool = True, seed: int = 0) -> None:
    check_for(runs.target_of(level), module, problem, threads, bias, seed)


def check_for(target: Target, module: Any, problem: Problem, threads: int = 1, bias: bool = True, seed: int = 0) -> None:
    """The kernel's output is the reference's: exactly, unless an activation or a transform comes in between."""
    operands = runs.operands(problem, bias=bias, seed=seed)
    got = runs.run_kernel(module, problem, operands, target, threads)
    if runs.exact(module) and problem.spec.activation is None:
        np.testing.assert_array_equal(got, operands.expected)
    else:
        bound = 2e-6 if problem.dtype == "float32" else 1e-14
        size = max(1.0, np.abs(operands.expected).max())
        np.testing.assert_allclose(got, operands.expected, rtol=bound, atol=bound * size * (1 if runs.exact(module) else 50))


def check_exactly(module: Any, problem: Problem, level: str) -> None:
    """Integers come out exactly, of transforms as well: their fractions are halves, and their odd divisors divide exactly."""
    operands = runs.operands(problem)
    got = runs.run_kernel(module, problem, operands, runs.target_of(level), min(2, runs.threads_allowed()))
    np.testing.assert_array_equal(got, operands.expected)


@KERNELS
def test_a_kernel_offers_all_that_plans_and_calls_ask_of_it(module: Any) -> None:
    assert [name for name in PROTOCOL if not hasattr(module, name)] == []
    assert {"x", "weight", "bias", "y"} <= set(module.SLOTS.names)


@KERNELS
@many
@given(problem=runs.problems(), bias=st.booleans(), threads=st.integers(1, 2), seed=st.integers(0, 99))
def test_integers_come_out_exactly(module: Any, problem: Problem, bias: bool, threads: int, seed: int) -> None:
    assume(takes(module, problem))
    check(module, problem, threads=min(threads, runs.threads_allowed()), bias=bias, seed=seed)


@pytest.mark.parametrize("level", runs.ends()[1:])
@KERNELS
@few
@given(problem=runs.problems(), bias=st.booleans())
def test_integers_come_out_exactly_on_lesser_targets(module: Any, level: str, problem: Problem, bias: bool) -> None:
    assume(takes(module, problem, level))
    check(module, problem, level, bias=bias)


@pytest.mark.parametrize(
    "module",
    [m if m in (direct, winograd) else pytest.param(m, marks=pytest.mark.long) for m in runs.KERNELS],
    ids=lambda module: module.NAME,
)
@few
@given(problem=runs.problems(), bias=st.booleans())
def test_sums_that_are_shuffled_before_they_are_stored_come_out_exactly(module: Any, problem: Problem, bias: bool) -> None:
    target = next((t for t in map(runs.target_of, LEVELS) if t.name == "avx2"), None)
    if target is None:
        pytest.skip("no AVX2 here")
    target = replace(target, stalls=not target.stalls)
    assume(module.rejects(problem, target) is None)
    check_for(target, module, problem, bias=bias)


@KERNELS
@few
@given(problem=runs.problems(activations=True))
def test_activations_are_applied_as_the_output_is_stored(module: Any, problem: Problem) -> None:
    assume(problem.spec.activation is not None and takes(module, problem))
    check(module, problem)


@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", runs.ACTIVATIONS[1:], ids=str)
def test_activations_over_their_whole_range(activation: Any, dtype: str, level: str) -> None:
    """One-channel, one-tap layer: its output is activation(x), from the subnormals to beyond overflow of the exponential."""
    numbers = np.concatenate([np.linspace(-120, 120, 997), [0.0, 1e-30, -1e-30, 3e-8, -3e-8, 1e4, -1e4]])
    problem = runs.make(size=(len(numbers),), in_channels=1, out_channels=1, kernel_size=1, dtype=dtype, activation=activation)
    x = numbers.astype(dtype).reshape(1, 1, -1)
    given = runs.Operands(x, np.ones((1, 1, 1), dtype), None, reference.activate(x.copy(), problem.spec.activation))
    got = runs.run_kernel(runs.KERNELS[0], problem, given, runs.target_of(level))
    bound = 4e-7 if dtype == "float32" else 8e-16
    np.testing.assert_allclose(got, given.expected, rtol=bound, atol=1e-36 if dtype == "float32" else 1e-300)


# -- the edges of tiles and blocks -------------------------------------------------------------------------------------------


def edges(*sizes: int) -> list[int]:
    """Each size, one less and one more."""
    return sorted({n + d for n in sizes for d in (-1, 0, 1) if n + d > 0})


MANY_TAPS: list[dict[str, Any]] = [
    dict(size=(70,), kernel_size=16, stride=4, padding=3),
    dict(size=(70,), kernel_size=64, stride=16, out_channels=1),
    dict(size=(70,), kernel_size=11, padding=5),
    dict(size=(90,), kernel_size=63, stride=2, padding=30),
    dict(size=(20, 31), kernel_size=5, padding=2),
    dict(size=(20, 31), kernel_size=(10, 11), padding=5),
    dict(size=(20, 31), kernel_size=(7, 9), stride=(2, 1), padding=2),
    dict(size=(20, 31), kernel_size=(8, 1), stride=(2, 1), padding=(3, 0), batch=2),
    dict(size=(5, 9, 11), kernel_size=(3, 7, 4), stride=(1, 2, 2), padding=1, batch=2),
    dict(size=(6, 9, 11), kernel_size=(2, 6, 5), stride=(2, 1, 1), padding=1, batch=2),
    dict(size=(5, 9, 11), kernel_size=4, stride=2, padding=1, batch=2),
    dict(size=(7, 9, 11), kernel_size=(7, 4, 3), stride=(3, 2, 1), padding=(2, 1, 1)),
    dict(size=(7, 9, 11), kernel_size=3, stride=(4, 1, 1), padding=(0, 1, 1)),
]
"""Four taps a phase and more, in one dimension or several."""


@pytest.mark.parametrize("level", runs.best())
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
@pytest.mark.parametrize("layer", MANY_TAPS, ids=lambda layer: f"{layer['kernel_size']}".replace(" ", ""))
@KERNELS
def test_many_taps_a_phase(module: Any, layer: dict[str, Any], transposed: bool, level: str) -> None:
    problem = runs.make(**{"in_channels": 12, "out_channels": 10, "transposed": transposed, **layer})
    if not takes(module, problem, level):
        pytest.skip(module.rejects(problem, runs.target_of(level)))
    check_exactly(module, problem, level)


DILATED: list[dict[str, Any]] = [
    dict(size=(1,), kernel_size=3, dilation=2, padding=2),
    dict(size=(400,), kernel_size=3, dilation=3, padding=3),
    dict(size=(331,), kernel_size=7, dilation=5, padding=14, batch=2),
    dict(size=(301,), kernel_size=2, dilation=16, padding=((3, 9),)),
    dict(size=(90,), kernel_size=11, dilation=9, padding=45),
    dict(size=(20, 31), kernel_size=3, dilation=2, padding=2, batch=2),
    dict(size=(33, 9), kernel_size=(3, 1), dilation=(5, 2), padding=(4, 0)),
    dict(size=(13, 40), kernel_size=(4, 3), dilation=(1, 3), padding=(1, 2), groups=2),
    dict(size=(13, 20), kernel_size=(3, 4), dilation=(3, 1), stride=(1, 2), padding=(3, 1)),
    dict(size=(5, 9, 21), kernel_size=3, dilation=(1, 2, 3), padding=(1, 2, 3)),
    dict(size=(5, 9, 11), kernel_size=3, dilation=(1, 2, 1), stride=(2, 1, 1), padding=(1, 2, 0), batch=2),
    dict(size=(9, 7, 11), kernel_size=(3, 1, 3), dilation=(4, 1, 1), padding=(4, 0, 0)),
    dict(size=(9, 8, 9), kernel_size=(2, 4, 4), dilation=(5, 1, 1), stride=(1, 2, 2), padding=(3, 1, 1)),
]
"""Layers that a dilation interleaves, in one dimension or several, beside others that have a stride."""


@pytest.mark.parametrize("level", runs.best())
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
@pytest.mark.parametrize("layer", DILATED, ids=lambda layer: f"{layer['kernel_size']}d{layer['dilation']}".replace(" ", ""))
@KERNELS
def test_layers_that_a_dilation_interleaves(module: Any, layer: dict[str, Any], transposed: bool, level: str) -> None:
    problem = runs.make(**{"in_channels": 18, "out_channels": 20, "transposed": transposed, **layer})
    if not takes(module, problem, level):
        pytest.skip(module.rejects(problem, runs.target_of(level)))
    for each in (problem, replace(problem, dtype="float64")):
        if takes(module, each, level):
            check_exactly(module, each, level)


def test_dilations_that_winograd_leaves_out() -> None:
    target = runs.target_of(runs.levels()[0])
    if target.lanes(4) < 4:
        pytest.skip("vectors too short for Winograd")
    for layer, reason in (
        (dict(size=(90,), kernel_size=3, stride=2, dilation=3), "dilation 3 at stride 2"),
        (dict(size=(90,), kernel_size=3, dilation=17), "dilation 17: a tile would have outputs of 17 interleaved layers"),
        (dict(size=(90, 90), kernel_size=3, dilation=(3, 6)), "dilation 3x6: a tile would have outputs of 18 interleaved layers"),
    ):
        assert winograd.rejects(runs.make(in_channels=16, out_channels=16, **layer), target) == reason
    for size, dilation in (((90,), 2), ((9, 9, 9), (2, 1, 1))):
        other = runs.make(in_channels=16, out_channels=16, size=size, kernel_size=3, dilation=dilation)
        assert winograd_last.rejects(other, target) == strassen.rejects(other, target) == "dilation 2"


@pytest.mark.parametrize("level", runs.best())
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
@pytest.mark.parametrize(
    "layer",
    [
        (3, 2),
        (5, 2),
        ((4, 3, 3), (3, 2, 2)),
        ((1, 4, 3), 2),
        ((2, 3, 4), (3, 2, 2)),
        ((7, 4, 4), 2),
        ((3, 2, 2), 2),
        ((5, 2, 4), 2),
    ],
    ids=repr,
)
@KERNELS
def test_volumes_whose_phases_lack_taps(module: Any, layer: tuple[Any, Any], transposed: bool, level: str) -> None:
    """In the outer dimension, in the inner ones, in all; where x is smaller than the kernel as well."""
    kernel, stride = layer
    for size in ((5, 6, 7), (2, 7, 9), (1, 3, 3)):
        larger = size if transposed else tuple(2 * n + 5 for n in size)
        numbers = {"in_channels": 24, "out_channels": 20, "kernel_size": kernel, "stride": stride, "padding": 0}
        problem = runs.make(size=larger, batch=2, transposed=transposed, **numbers)
        if takes(module, problem, level):
            check(module, problem, level)


def width_of(how: Any) -> int:
    """Positions a tile takes at once (16 for a kernel without a register tile)."""
    return how.tile.width if hasattr(how, "tile") else 16


@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
@KERNELS
def test_lengths_at_the_edges_of_a_tile(module: Any, transposed: bool, level: str) -> None:
    layer: dict[str, Any] = dict(in_channels=24, out_channels=20, kernel_size=4, stride=2, padding=1, transposed=transposed)
    long = runs.make(size=(500,), **layer)
    target = runs.target_of(level)
    if module.rejects(long, target):
        pytest.skip(module.rejects(long, target))
    how = module.blocking(long, target, 1)
    width, block = width_of(how), getattr(how, "block", 0)
    for positions in edges(1, width, 2 * width, block):
        size = positions if transposed else 2 * positions
        for problem in (runs.make(size=(size + 1,), **layer), runs.make(size=(size,), batch=2, **layer)):
            if takes(module, problem, level):
                check(module, problem, level)


@pytest.mark.parametrize("level", runs.ends())
@KERNELS
def test_output_channels_at_the_edges_of_a_chunk(module: Any, level: str) -> None:
    target = runs.target_of(level)
    layer: dict[str, Any] = dict(size=(9, 20), in_channels=24, kernel_size=4, stride=2, padding=1)
    wide = runs.make(out_channels=200, **layer)
    if module.rejects(wide, target):
        pytest.skip(module.rejects(wide, target))
    how = module.blocking(wide, target, 1)
    rows = how.tile.rows if hasattr(how, "tile") else 8
    for channels in edges(1, rows, getattr(how, "chunk", 16), 2 * getattr(how, "chunk", 16)):
        problem = runs.make(out_channels=channels, **layer)
        if takes(module, problem, level):
            check(module, problem, level)


@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kernel", "stride"), [(9, 2), (5, 2), (3, 2), (7, 4), ((3, 5), (2, 3)), ((5, 3, 3), 2), ((2, 5), (3, 2)), (9, 1)]
)
def test_phases_share_what_they_read(kernel: Any, stride: Any, dtype: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes from those whose taps meet little but padding; a phase without any tap among them (kernel 2, stride 3)."""
    target, direct = runs.target_of(level), runs.KERNELS[0]

    def sharing(problem: Problem, target: Any) -> Any:
        tile = direct_way.choose_tile(problem, target)
        return next(way for way in direct_way._ways(problem, target, tile) if way.shared and way.panels == (problem.batch == 2))

    for module in (direct, direct_blocks):
        monkeypatch.setattr(module, "choose_way", sharing)
    direct.blocking.cache_clear()
    for size, channels, groups, batch in product((2, 3, 11), (1, 3), (1, 2), (1, 2)):
        layer: dict[str, Any] = dict(in_channels=6, out_channels=channels * groups, kernel_size=kernel, stride=stride, padding=1)
        problem = runs.make(
            size=(size,) * (len(kernel) if isinstance(kernel, tuple) else 2), batch=batch, groups=groups, dtype=dtype, **layer
        )
        check(direct, problem, level, threads=runs.threads_allowed())
        assert direct.blocking(problem, target, 1).shared
    direct.blocking.cache_clear()


def test_few_output_channels_share_what_their_phases_read() -> None:
    layer: dict[str, Any] = dict(size=(40, 50), in_channels=56, kernel_size=9, stride=2, padding=4)
    direct, target = runs.KERNELS[0], runs.target_of(LEVELS[0])
    assert direct.blocking(runs.make(out_channels=1, **layer), target, 1).shared
    assert not direct.blocking(runs.make(out_channels=48, **layer), target, 1).shared


@pytest.mark.parametrize(
    "layer",
    [
        dict(size=(149, 149), in_channels=1024, out_channels=1, kernel_size=3, padding=1),
        dict(size=(50, 50), in_channels=512, out_channels=3, kernel_size=3, stride=2, padding=1, output_padding=1, batch=16),
        dict(size=(70, 107), in_channels=96, out_channels=1, kernel_size=3, padding=1, batch=8),
    ],
    ids=str,
)
def test_the_band_of_many_channels_is_cut_by_channels_so_that_blocks_copy_little_twice(layer: dict[str, Any]) -> None:
    problem = runs.make(**layer)
    how = direct_blocks.blocking(problem, runs.target_of(LEVELS[0]), 2)
    assert not how.panels
    assert how.left + how.right < 0.25 * how.block
    assert how.channels_a_pack < layer["in_channels"]


@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
def test_few_positions_have_tiles_of_as_many_columns(transposed: bool, dtype: str, level: str) -> None:
    target, columns = runs.target_of(level), set()
    for batch, size, channels in product((1, 2, 3, 6, 7, 13), ((1, 1), (2, 1)), (1, 31, 64, 129, 256)):
        layer: dict[str, Any] = dict(in_channels=45, out_channels=channels, kernel_size=4, stride=2, padding=1, dtype=dtype)
        if not transposed:
            size = (2 * size[0], 2 * size[1])
        problem = runs.make(transposed, batch=batch, size=size, **layer)
        if indirect_first.rejects(problem, target):
            assert channels < target.lanes(problem.itemsize)
            continue
        threads = runs.threads_allowed()
        check(indirect_first, problem, level, threads=threads)
        tile = indirect_first.blocking(problem, target, threads).tile
        assert tile.rows <= max(tile.lanes, channels)
        columns.add(tile.turned)
    assert {2, 4, 6} <= columns <= set(register_tile.FEW_COLUMNS)


@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
def test_weights_that_meet_one_tile_are_asked_for_ahead(transposed: bool) -> None:
    """Of Intel's servers; more tiles ask for the next chunk's."""
    target, found = replace(runs.target_of(LEVELS[0]), l2=16 << 10), set()
    layer: dict[str, Any] = dict(in_channels=45, out_channels=129, kernel_size=4, stride=2, padding=1)
    for batch, ahead in product((1, 5, 13), (0, 192)):
        problem = runs.make(transposed, batch=batch, size=(1, 1) if transposed else (2, 2), **layer)
        operands = runs.operands(problem)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(indirect, "AHEAD", (ahead,) * 3)
            indirect_first.blocking.cache_clear()
            how = indirect_first.blocking(problem, target, 1)
            assert indirect_first.code_name(problem, how, target).endswith("_ahead_" + target.name) == (how.ahead > 0)
            np.testing.assert_array_equal(runs.run_kernel(indirect_first, problem, operands, target, 1), operands.expected)
            found.add((how.block > how.tile.turned, how.tile.asks, how.ahead))
    indirect_first.blocking.cache_clear()
    assert found == {(False, False, 0), (False, False, 192), (True, True, 0)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
def test_many_weights_that_few_positions_meet_are_read_in_streams(transposed: bool, dtype: str) -> None:
    """Where channels can be dealt out to them, as many for every tap; in one piece elsewhere."""
    target, streams = runs.small(runs.target_of(LEVELS[0])), set()
    for batch, size, (channels_in, channels), groups in product((1, 5), ((1, 1), (2, 2)), ((20, 129), (21, 129), (4, 700)), (1, 2)):
        layer: dict[str, Any] = dict(kernel_size=4, stride=2, padding=1, dtype=dtype, groups=groups)
        channels_in, channels = channels_in * groups, channels * groups
        if not transposed:
            size = (2 * size[0], 2 * size[1])
        problem = runs.make(transposed, batch=batch, size=size, in_channels=channels_in, out_channels=channels, **layer)
        if indirect_first.rejects(problem, target):
            continue  # x is too large for a cache so small
        how, threads = indirect_first.blocking(problem, target, 1), runs.threads_allowed()
        operands = runs.operands(problem)
        for n in {1, threads}:
            np.testing.assert_array_equal(runs.run_kernel(indirect_first, problem, operands, target, n), operands.expected)
        assert how.streams == 1 or channels_in // groups % how.streams == 0
        streams.add(how.streams)
    assert streams == {1, indirect.STREAMS}
    assert indirect.streams(problem, replace(target, registers=32)) == indirect.streams(problem, replace(target, l2=1 << 20)) == 1


@KERNELS
def test_blocks_in_the_middle_of_rows_and_images(module: Any) -> None:
    """A target with a tiny second-level cache cuts even small layers into many blocks, at places no row begins."""
    target = replace(runs.target_of(LEVELS[0]), l2=16 << 10, l1=4 << 10)
    for layer in (
        dict(size=(40, 37), in_channels=24, out_channels=10, kernel_size=4, stride=2, padding=1, batch=2),
        dict(size=(61, 45), in_channels=16, out_channels=9, kernel_size=5, stride=2, padding=2, transposed=False),
        dict(size=(9, 11, 13), in_channels=8, out_channels=6, kernel_size=3, stride=2, padding=1, output_padding=1, batch=2),
        dict(size=(3001,), in_channels=12, out_channels=5, kernel_size=16, stride=8, padding=4, groups=1),
        dict(size=(50, 50), in_channels=12, out_channels=12, kernel_size=3, padding=1, groups=4, dilation=2),
        dict(size=(40, 137), in_channels=24, out_channels=1, kernel_size=9, stride=2, padding=4, output_padding=1),
        dict(size=(30, 150), in_channels=24, out_channels=3, kernel_size=9, padding=4, transposed=False),
        dict(size=(1501,), in_channels=12, out_channels=1, kernel_size=16, stride=8, padding=4, batch=3),
        dict(size=(40, 41), in_channels=9, out_channels=2, kernel_size=2, stride=2, batch=3),
        dict(size=(9, 11, 13), in_channels=6, out_channels=1, kernel_size=2, stride=2, batch=2),
        dict(size=(37, 50), in_channels=14, out_channels=4, kernel_size=1, groups=2, transposed=False),
    ):
        problem = runs.make(**layer)
        if module.rejects(problem, target) is None:
            given = runs.operands(problem)
            for threads in (1, runs.threads_allowed()):
                got = runs.run_kernel(module, problem, given, target, threads)
                if runs.exact(module):
                    np.testing.assert_array_equal(got, given.expected)
                else:
                    np.testing.assert_allclose(got, given.expected, rtol=1e-4, atol=1e-4 * np.abs(given.expected).max())


@pytest.mark.parametrize("level", runs.ends())
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("layer", "packed"),
    [
        (dict(size=(40, 40), kernel_size=2, stride=2), False),  # an image's columns are whole vectors: none ends outside
        (dict(size=(8, 20, 20), kernel_size=2, stride=2), False),
        (dict(size=(1600,), kernel_size=1, transposed=False), False),
        (dict(size=(1600,), kernel_size=16, stride=8), True),  # but where a sum reaches over an end
        (dict(size=(39, 41), kernel_size=2, stride=2), True),
    ],
    ids=["rows", "planes", "ordinary", "halo", "part of a vector"],
)
def test_blocks_that_are_pieces_of_x_are_read_where_they_stand(layer: dict[str, Any], packed: bool, batch: int, level: str) -> None:
    """What the workspace holds tells: the band's part of it is as it was wherever no block had to be packed."""

    class Kept(runs.Plain):
        def workspace(self, size: int) -> NDArray[Any]:
            self.last = [super().workspace(size), *getattr(self, "last", [])]
            return self.last[0]

    direct, target = runs.KERNELS[0], runs.target_of(level)
    problem, memory = runs.make(batch=batch, in_channels=24, out_channels=1, **layer), Kept()
    given = runs.operands(problem)
    np.testing.assert_array_equal(runs.run_kernel(direct, problem, given, target, 1, memory), given.expected)
    how = direct.blocking(problem, target, 1)
    assert not how.panels
    assert how.cut.count > batch
    begin = how.table_bytes + how.found_bytes + how.scratch_bytes + how.line_bytes
    assert (memory.last[1][begin : begin + how.right_bytes] != 255).any() == packed


# -- numbers that are not finite -----------------------------------------------------------------------------------------------


@EXACT_KERNELS
@few
@given(problem=runs.problems(), seed=st.integers(0, 99), special=st.sampled_from((np.nan, np.inf, -np.inf)))
def test_nan_and_infinity_in_x_go_where_the_reference_sends_them(module: Any, problem: Problem, seed: int, special: float) -> None:
    assume(takes(module, problem))
    rng = np.random.default_rng(seed)
    plain = runs.operands(problem, seed=seed)
    x = plain.x.copy()
    x.reshape(-1)[rng.integers(0, x.size, 2)] = special
    with np.errstate(invalid="ignore"):
        expected = reference.forward(problem.spec, x, plain.weight, plain.bias, problem.output_size)
    got = runs.run_kernel(module, problem, runs.Operands(x, plain.weight, plain.bias, expected), runs.target_of(LEVELS[0]))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "ordinary"])
@EXACT_KERNELS
def test_nan_and_infinity_in_weight_and_bias(module: Any, transposed: bool, special: float) -> None:
    problem = runs.make(transposed, size=(6, 7), in_channels=3, out_channels=4, kernel_size=3, stride=2, padding=1, batch=2)
    if not takes(module, problem):
        pytest.skip("not this kernel's layer")
    plain = runs.operands(problem)
    x = np.abs(plain.x) + 1
    for where in ("weight", "bias"):
        weight, bias = plain.weight.copy(), plain.bias.copy()
        (weight if where == "weight" else bias)[1] = special
        with np.errstate(invalid="ignore"):
            expected = reference.forward(problem.spec, x, weight, bias, problem.output_size)
            got = runs.run_kernel(module, problem, runs.Operands(x, weight, bias, expected), runs.target_of(LEVELS[0]))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("activation", runs.ACTIVATIONS[1:], ids=str)
def test_activations_keep_nan_and_take_infinity_to_their_limits(activation: Any) -> None:
    problem = runs.make(size=(20,), in_channels=1, out_channels=1, kernel_size=1, activation=activation)
    x = np.full((1, 1, 20), 0.5, np.float32)
    x[0, 0, :3] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        expected = reference.activate(x.copy(), problem.spec.activation)
    given = runs.Operands(x, np.ones((1, 1, 1), np.float32), None, expected)
    got = runs.run_kernel(runs.KERNELS[0], problem, given, runs.target_of(LEVELS[0]))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-30)


# -- whole calls ---------------------------------------------------------------------------------------------------------------


@few
@given(problem=runs.problems(activations=True), empty=st.integers(0, 3), data=st.data())
def test_calls_agree_with_the_reference_for_every_batch(problem: Problem, empty: int, data: Any) -> None:
    """The public functions: an empty batch, one image, several, unbatched, and memory laid out in other ways."""
    spec = problem.spec
    problem = replace(problem, batch=0) if empty == 0 else problem
    given = runs.operands(problem, bias=data.draw(st.booleans()))
    arguments: dict[str, Any] = dict(
        stride=spec.stride, padding=spec.padding, dilation=spec.dilation, groups=spec.groups, activation=spec.activation
    )
    if spec.transposed:
        arguments["output_padding"] = spec.output_padding
    x = data.draw(st.sampled_from((given.x, np.asfortranarray(given.x), given.x[:, ::-1][:, ::-1], given.x.astype(">f4"))))
    x = x if x.dtype == given.x.dtype or given.x.dtype == np.float32 else given.x
    call = upconv.conv_transpose if spec.transposed else upconv.conv
    got = call(x, given.weight, given.bias, **arguments)
    assert got.dtype == problem.dtype
    assert got.shape == problem.output_shape
    np.testing.assert_allclose(got, given.expected, rtol=2e-6, atol=1e-3 if spec.activation is None else 1e-5)
    if problem.batch == 1:
        np.testing.assert_array_equal(call(x[0], given.weight, given.bias, **arguments), got[0])
