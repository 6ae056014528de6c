"""Large outputs that go round the caches, on Intel's servers: where, and that what is stored is what was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import kernel_runs as runs
from fences import Fenced
from upconv.codegen.target import Target
from upconv.kernels import direct, overlap_add, store, strassen, winograd, winograd_middle, winograd_wide

SERVER = Target("avx512", "x86_64-unknown-linux-gnu", "sapphirerapids", "", 64, 32, 48 << 10, 2 << 20, masks=True)
ZEN4 = replace(SERVER, cpu="znver4", fmas=1)
LAYERS: dict[str, Any] = {
    "k2s2": dict(size=(5, 32), in_channels=12, out_channels=20, kernel_size=2, stride=2, batch=2),
    "k2s2, rows of 40": dict(size=(6, 20), in_channels=12, out_channels=20, kernel_size=2, stride=2),
    "k1": dict(size=(7, 48), in_channels=20, out_channels=24, kernel_size=1),
    "along h": dict(size=(9, 48), in_channels=24, out_channels=20, kernel_size=(8, 1), stride=(4, 1)),
    "k4s2p1": dict(size=(6, 32), in_channels=12, out_channels=16, kernel_size=4, stride=2, padding=1, activation="relu"),
    "k4s4": dict(size=(70,), in_channels=9, out_channels=12, kernel_size=4, stride=4),
}


@pytest.fixture
def server() -> Target:
    """This machine as one of them, if its vectors are as long."""
    host = runs.target_of(runs.levels()[0])
    if host.vector_bytes != 64 or not host.triple.startswith("x86_64"):
        pytest.skip("no vectors of 64 bytes here")
    return replace(host, fmas=2, cpu=host.cpu if not host.cpu.startswith("znver") else "x86-64-v4")


@pytest.mark.parametrize("kernel", [direct, overlap_add, strassen, winograd, winograd_middle, winograd_wide], ids=lambda m: m.NAME)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("at_end", [False, True], ids=["start", "end"])
def test_outputs_are_the_same(kernel: Any, name: str, at_end: bool, server: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever y begins: between guard pages on a whole line, or an element before a page ends."""
    monkeypatch.setattr(store, "ROUND", 0)
    problem = runs.make(**LAYERS[name])
    if kernel.rejects(problem, server):
        pytest.skip(kernel.rejects(problem, server))
    fenced, given = Fenced(at_end), runs.operands(problem)
    got = runs.run_kernel(kernel, problem, given, server, runs.threads_allowed(), fenced)
    np.testing.assert_array_equal(got, given.expected)
    assert fenced.untouched()


@pytest.mark.parametrize("kernel", [direct, strassen], ids=lambda m: m.NAME)
def test_only_servers_have_such_stores(kernel: Any) -> None:
    problem = runs.make(size=(80, 80), in_channels=192, out_channels=192, kernel_size=2, stride=2)
    marks = [kernel.emit(problem, kernel.blocking(problem, target, 2)).count("!nontemporal") for target in (SERVER, ZEN4)]
    assert marks[0] > 0
    assert marks[1] == 0


@pytest.mark.parametrize(
    ("layer", "around"),
    [
        (dict(size=(80, 80), out_channels=192, kernel_size=2, stride=2), True),
        (dict(size=(80, 80), out_channels=96, kernel_size=2, stride=2), False),
        (dict(size=(124, 108), out_channels=192, kernel_size=2, stride=2), False),
        (dict(size=(200, 40), out_channels=192, kernel_size=2, stride=2), False),
        (dict(size=(248, 216), out_channels=128, kernel_size=1), True),
        (dict(size=(247, 217), out_channels=128, kernel_size=1), False),
        (dict(size=(80, 80), out_channels=192, kernel_size=4, stride=2, padding=1), False),
        (dict(size=(128, 336), out_channels=48, kernel_size=(8, 1), stride=(4, 1)), True),
    ],
    ids=["19.7 MB", "9.8 MB", "rows of 216", "of 2.5 vectors", "planes of lines", "of none", "begins before a line", "along h"],
)
def test_which_outputs_do(layer: dict[str, Any], around: bool) -> None:
    """Of 16 MB and more, whose vectors are whole lines: rows that are, or rows that follow one another."""
    problem = runs.make(in_channels=16, **layer)
    assert store.numbers(problem) == {"y_round": around}
    assert direct.bind(problem, direct.blocking(problem, SERVER, 2)).slots["y_round"] == around
