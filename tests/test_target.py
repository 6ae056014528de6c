"""What is known of processors, and the vectors that tiles are made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from upconv.codegen import target as targets
from upconv.codegen.target import Target
from upconv.kernels import register_tile, strassen, winograd, winograd_cuts, winograd_wide
from upconv.kernels.winograd_tiles import tiling_of
from upconv.spec import ConvSpec, Problem

ZEN3 = Target("avx2", "x86_64-unknown-linux-gnu", "znver3", "", 32, 16, 32 << 10, 512 << 10, masks=False)
ZEN4 = Target("avx512", "x86_64-unknown-linux-gnu", "znver4", "", 64, 32, 32 << 10, 1 << 20, masks=True, fmas=1)
SERVER = replace(ZEN4, cpu="sapphirerapids", l1=48 << 10, l2=2 << 20, fmas=2)


ROWS = {
    # output channels -> (rows, columns) of the tile for channels last
    ZEN3: {8: (8, 6), 16: (16, 6), 21: (24, 4), 64: (16, 6), 96: (16, 6)},
    ZEN4: {16: (16, 6), 21: (24, 6), 48: (48, 6), 64: (64, 6), 96: (32, 6)},
    SERVER: {16: (16, 6), 32: (32, 6), 64: (64, 6)},
    replace(ZEN3, vector_bytes=16, fma=False): {16: (8, 6)},  # more columns than lanes
}


@pytest.mark.parametrize(("target", "channels"), [(t, n) for t, found in ROWS.items() for n in found])
def test_tiles_for_channels_last_are_as_high_as_suits_the_channels(target: Target, channels: int) -> None:
    tile = register_tile.last_tile("float32", target, channels)
    assert (tile.rows, tile.turned) == ROWS[target][channels]
    assert register_tile.fits(tile.turned, tile.rows // tile.lanes, target)


def test_few_columns_have_tiles_of_as_many_and_every_share_of_the_channels_one() -> None:
    for target in (ZEN3, ZEN4):
        for columns, computed in ((1, 2), (2, 2), (4, 4), (5, 5), (6, 6), (8, 8), (9, 10), (12, 12)):
            tile = register_tile.few_tile("float32", target, 512, columns, 4)
            assert -(-columns // tile.turned) * tile.turned == computed
            assert register_tile.fits(tile.turned, tile.rows // tile.lanes, target)
            assert register_tile.few_tile("float32", target, 64, columns, 4).rows == 16
        assert register_tile.few_tile("float32", target, 16, 1, 1).rows == 16
    assert register_tile.few_tile("float32", ZEN3, 512, 4, 4).rows == 16  # 24 would leave one of two threads more than the other


def test_vectors_are_no_longer_than_what_is_added_up_at_a_time() -> None:
    assert register_tile.last_tile("float32", ZEN4, 48).lanes == 16
    assert register_tile.last_tile("float32", ZEN4, 48, piece=6).lanes == 8
    assert register_tile.last_tile("float32", ZEN4, 48, piece=12).lanes == 16
    assert register_tile.last_tile("float32", ZEN3, 48, piece=2).lanes == 8  # there are none shorter


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.delenv("UPCONV_TARGET", raising=False)
    targets.host.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    targets.host.cache_clear()


@pytest.mark.parametrize(
    ("cpu", "level", "fmas"),
    [("znver4", None, 1), ("tigerlake", None, 1), ("sapphirerapids", None, 2), ("znver5", None, 2), ("znver4", "avx2", 2)],
)
def test_multiply_adds_that_start_in_a_cycle(pretended: pytest.MonkeyPatch, cpu: str, level: str | None, fmas: int) -> None:
    features = dict.fromkeys(("avx2", "fma", "avx512f", "avx512vl", "avx512dq", "avx512bw"), True)
    pretended.setattr(targets, "_host", lambda: ("x86_64-unknown-linux-gnu", cpu, features))
    found = targets.host(level)
    assert found.fmas == fmas
    assert found.peak_flops(4) == 2 * fmas * found.lanes(4) * found.hertz


KINDS = {
    "16 registers": (0, ZEN3),
    "32 registers": (1, ZEN4),
    "Intel's servers": (2, SERVER),
    "Intel's client processors": (1, replace(SERVER, cpu="tigerlake", fmas=1)),
    "memory as Zen 4's": (1, replace(ZEN4, cpu="znver5", fmas=2)),
    "Arm": (1, Target("neon", "aarch64-linux-gnu", "neoverse-n1", "", 16, 32, 64 << 10, 1 << 20, masks=False)),
}


@pytest.mark.parametrize(("kind", "target"), KINDS.values(), ids=KINDS)
def test_figures_that_were_measured_on_kinds_of_processors_hold_for_those(kind: int, target: Target) -> None:
    assert target.kind == kind


@pytest.mark.parametrize(("cpu", "level", "stalls"), [("znver3", None, True), ("haswell", None, False), ("znver3", "sse2", False)])
def test_processors_whose_stores_hold_multiply_adds_back(
    pretended: pytest.MonkeyPatch, cpu: str, level: str | None, stalls: bool
) -> None:
    pretended.setattr(targets, "_host", lambda: ("x86_64-unknown-linux-gnu", cpu, {"avx2": True, "fma": True}))
    found = targets.host(level)
    assert found.stalls == stalls
    tiles = [*register_tile.tiles("float", found), register_tile.last_tile("float32", found, 64)]
    assert {tile.stalls for tile in [*tiles, register_tile.few_tile("float32", found, 64, 4, 4)]} == {stalls}


def test_tiles_are_made_of_whole_vectors_and_of_halves_of_the_longest() -> None:
    for element, itemsize in (("float", 4), ("double", 8)):
        assert {t.lanes for t in register_tile.tiles(element, ZEN3)} == {32 // itemsize}
        for target in (ZEN4, SERVER):
            tiles = register_tile.tiles(element, target)
            assert {t.lanes for t in tiles} == {64 // itemsize, 32 // itemsize}
            assert {t.cycles for t in tiles if t.lanes == 64 // itemsize} == {1 / target.fmas}
            assert {t.cycles for t in tiles if t.lanes == 32 // itemsize} == {targets.HALF}


def up(channels_in: int, channels_out: int, size: int) -> Problem:
    spec = ConvSpec.make(
        transposed=True, in_channels=channels_in, out_channels=channels_out, kernel_size=4, stride=2, padding=1, rank=2
    )
    return Problem(spec, 1, (size, size), spec.output_size((size, size)))


def test_no_thread_has_a_block_more_than_the_others_where_one_fewer_will_do() -> None:
    problem = up(64, 3, 76)
    usual = winograd.blocking(problem, ZEN4, 2)
    assert usual.chunks == 1, "nothing that another thread could help with"
    for threads, blocks in ((1, 11), (2, 10), (5, 10)):
        assert winograd.blocking(problem, ZEN4, threads).cut.count == blocks


def test_a_last_block_that_threads_share_is_as_good_as_none() -> None:
    spec = ConvSpec.make(transposed=True, in_channels=192, out_channels=192, kernel_size=2, stride=2, rank=2)
    problem = Problem(spec, 1, (72, 72), spec.output_size((72, 72)))
    found = strassen.blocking(problem, ZEN4, 2)
    assert (found.cut.count, found.splits) == (27, 1)
    assert found.chunks >= 4
    assert winograd_cuts.offered(problem, tiling_of(spec), found.tile, 2, (5184, 1), False, 192, 2)[0].count == 27
    wide = replace(ZEN4, l2=ZEN4.l2 // 4)  # V of longer blocks would fill more than half of it
    assert strassen.blocking(problem, wide, 2).cut.block <= found.cut.block


def test_few_columns_are_computed_in_half_vectors_where_whole_ones_would_be_idle() -> None:
    few = winograd_wide.blocking(up(1024, 256, 16), ZEN4, 2)  # 24 tiles
    assert (few.tile.lanes, few.tile.width) == (8, 24)
    many = winograd_wide.blocking(up(128, 32, 184), ZEN4, 2)
    assert many.tile.lanes == 16
