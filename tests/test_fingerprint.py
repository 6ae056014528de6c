"""Whether a weight has changed: the digest of all of its bytes, the samples of a large one, and the layers that go by them."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import numpy as np
import pytest

from fences import Fenced
from kernel_runs import levels, target_of
from upconv.codegen import threads
from upconv.kernels import fingerprint
from upconv.kernels.fingerprint import SAMPLES, SMALL

PAGE = SAMPLES * 64
SIZES = [1, PAGE - 1, PAGE, 3 * PAGE + 5, SMALL + 1, (1 << 18) - 8, (1 << 18) + PAGE + 12, 1_000_004]


def place(data: Any) -> tuple[int, int]:
    return data.ctypes.data, data.nbytes


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2])
def test_a_byte_changes_the_digest_and_one_sample(size: int, count: int, level: str) -> None:
    target, rng = target_of(level), np.random.default_rng(size)
    data = rng.integers(0, 256, size).astype(np.uint8)
    before = threads.get_num_threads()
    threads.set_num_threads(count)
    try:
        digest, samples = fingerprint.fingerprint(*place(data), target), fingerprint.samples(*place(data), target)
        assert len(samples) == SAMPLES
        for at in {0, size - 1, *rng.integers(0, size, 40).tolist()}:
            data[at] ^= 1 << int(rng.integers(0, 8))
            assert fingerprint.fingerprint(*place(data), target) != digest
            now = fingerprint.samples(*place(data), target)
            differing = [i for i in range(SAMPLES) if now[i] != samples[i]]
            rest = at >= size // PAGE * PAGE  # what does not fill a page is in every sample
            assert len(differing) == (SAMPLES if rest else 1)
            assert fingerprint.sample(*place(data), target, differing[0]) == now[differing[0]]
            digest, samples = fingerprint.fingerprint(*place(data), target), now
    finally:
        threads.set_num_threads(before)


@pytest.mark.parametrize("level", levels())
def test_nothing_outside_is_read(level: str) -> None:
    for size in SIZES:
        for at_end in (False, True):
            data = Fenced(at_end).hold(np.zeros(size, np.uint8))
            fingerprint.fingerprint(*place(data), target_of(level))
            fingerprint.samples(*place(data), target_of(level))


def test_equal_lines_of_every_page_are_in_many_samples() -> None:
    """Else a filter whose values are a page apart could change unseen until its sample's turn comes."""
    data = np.zeros(512 * PAGE, np.uint8)
    target = target_of(levels()[0])
    samples = fingerprint.samples(*place(data), target)
    data[17 * 64 :: PAGE] = 1
    now = fingerprint.samples(*place(data), target)
    assert sum(a != b for a, b in zip(samples, now, strict=True)) > SAMPLES * 0.9


# -- layers ------------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
import upconv.torch  # noqa: E402


def layer_and_input() -> tuple[Any, Any]:
    torch.manual_seed(0)
    return upconv.torch.ConvTranspose2d(256, 128, 4, 2, 1, bias=False), torch.randn(1, 256, 3, 3)


def agrees(layer: Any, x: Any) -> bool:
    with torch.inference_mode():
        expected = torch.nn.functional.conv_transpose2d(x, layer.weight, None, 2, 1)
        return bool(torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-4))


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.view(-1)[1_234:1_235].add_(1),
        lambda w: w[3, 4].zero_(),
        lambda w: w.data.mul_(2),
        lambda w: w.data[7].zero_(),
        lambda w: w.data[:, 5].zero_(),
        lambda w: w.detach().numpy().__setitem__(slice(None), 0.5),
        lambda w: setattr(w, "data", w.data.clone().neg_()),
        lambda w: ctypes.memset(w.data_ptr(), 0, w.nbytes),
    ],
    ids=["one value", "one filter", ".data", ".data of a channel", ".data of a filter", "numpy", "other memory", "raw"],
)
def test_a_change_of_a_large_weight_is_seen_by_the_next_call(change: Any) -> None:
    layer, x = layer_and_input()
    assert layer.weight.nbytes > upconv.torch.arrays.LARGE
    for _ in range(5):
        assert agrees(layer, x)
    for _ in range(2):
        with torch.no_grad():
            change(layer.weight)
        assert agrees(layer, x)


def test_a_single_value_behind_torchs_back_is_seen_before_every_sample_has_had_its_turn() -> None:
    layer, x = layer_and_input()
    for _ in range(3):
        assert agrees(layer, x)
    layer.weight.data[9, 9, 1, 1] += 100
    assert any(agrees(layer, x) for _ in range(SAMPLES))
    assert agrees(layer, x)


def test_a_weight_that_torch_counts_nothing_of_is_compared_as_a_whole() -> None:
    with torch.inference_mode():
        layer, x = layer_and_input()
        assert layer.weight.is_inference()
        for _ in range(3):
            assert agrees(layer, x)
        layer.weight[9, 9, 1, 1] += 100
        assert agrees(layer, x)


def test_another_weight_in_the_same_memory_is_another() -> None:
    """Copies that differ in a single value, each changed as often as the one before, one after the other in one place."""
    layer, x = layer_and_input()
    places = set()
    with torch.no_grad():
        for i in range(12):
            weight = layer.weight.detach().clone()
            weight[9, 9, 1, i % 4] += 100
            places.add(weight.data_ptr())
            expected = torch.nn.functional.conv_transpose2d(x, weight, None, 2, 1)
            for _ in range(4):
                assert torch.allclose(upconv.torch.conv_transpose2d(x, weight, None, 2, 1), expected, rtol=1e-4, atol=1e-3)
            del weight
    assert len(places) < 12  # else this shows nothing


def test_weights_that_are_gone_leave_nothing_behind() -> None:
    layer, x = layer_and_input()
    gc.collect()
    before = len(upconv.torch.arrays._numbered)
    with torch.no_grad():
        upconv.torch.conv_transpose2d(x, layer.weight.clone(), None, 2, 1)
    gc.collect()
    assert len(upconv.torch.arrays._numbered) <= before


def test_training_steps_see_every_change() -> None:
    layer, x = layer_and_input()
    optimiser = torch.optim.SGD(layer.parameters(), 0.1)
    for _ in range(4):
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        optimiser.step()
        assert agrees(layer, x)
        assert agrees(layer, x)
