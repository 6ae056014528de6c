"""A call whose like has been checked before is not checked again, whatever its arguments are written as, and gives the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import upconv
from upconv import functional
from upconv.arguments import Calls
from upconv.spec import ConvSpec

LAYER: dict[str, Any] = dict(stride=2, padding=1)
WRITTEN = [
    LAYER,
    dict(stride=(2, 2), padding=(1, 1)),
    dict(stride=[2, 2], padding=[1, 1]),
    dict(stride=[2, 2], padding=[[1, 1], (1, 1)]),
    dict(stride=2, padding=1, output_padding=[0, 0], dilation=[1, 1]),
]


def arrays() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(s).astype(np.float32) for s in ((2, 6, 5, 7), (6, 4, 4, 4), (4,)))


@pytest.fixture
def makes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every spec that is made, which is what checking comes to."""
    made: list[Any] = []
    make = ConvSpec.make

    def counted(**arguments: Any) -> ConvSpec:
        made.append(arguments)
        return make(**arguments)

    monkeypatch.setattr(functional.ConvSpec, "make", counted)
    return made


@pytest.mark.parametrize("layer", WRITTEN, ids=str)
def test_lists_are_looked_up_as_tuples_are(layer: dict[str, Any], makes: list[Any]) -> None:
    x, w, b = arrays()
    expected = upconv.conv_transpose(x, w, b, **layer)
    before = len(makes)
    np.testing.assert_array_equal(upconv.conv_transpose(x, w, b, **layer), expected)
    assert len(makes) == before
    np.testing.assert_array_equal(expected, upconv.conv_transpose(x, w, b, **LAYER))


def test_a_list_that_has_changed_is_another_argument() -> None:
    x, w, b = arrays()
    stride = [2, 2]
    assert upconv.conv_transpose(x, w, b, stride).shape == (2, 4, 12, 16)
    stride[1] = 1
    assert upconv.conv_transpose(x, w, b, stride).shape == (2, 4, 12, 10)
    with pytest.raises(upconv.SpecError, match=r"stride\[1\] is 1\.0: give a whole number"):
        upconv.conv_transpose(x, w, b, [2, 1.0])


@pytest.mark.parametrize("wrong", [2.0, np.float32(2), (2, 2.0), (2.0, 2)], ids=repr)
def test_what_is_equal_to_an_argument_that_was_allowed_is_not_allowed_for_that(wrong: Any) -> None:
    x, w, b = arrays()
    for stride in (2, (2, 2)):
        upconv.conv_transpose(x, w, b, stride)
        upconv.conv_transpose(x, w, b, stride)
    with pytest.raises(upconv.SpecError, match=r"give a whole number"):
        upconv.conv_transpose(x, w, b, wrong)
    assert upconv.conv_transpose(x, w, b, np.int64(2)).shape == upconv.conv_transpose(x, w, b, 2).shape


def test_calls_that_are_like_one_before_are_found_and_no_others() -> None:
    calls = Calls[str](most=3)
    key, lists = ("f", (2, (1, 1), None)), ("f", (2, [1, 1], None))
    for known, value in ((key, "tuple"), (lists, "list")):
        assert calls.find(known) is None
        calls.keep(known, value)
    assert [calls.find(k) for k in (key, ("f", (2, (1, 1), None)), lists, ("f", (2, [1, 1], None)))] == ["tuple"] * 2 + ["list"] * 2
    assert [calls.find(("f", (n, (1, 1), None))) for n in (2.0, np.float64(2), 3)] == [None] * 3
    assert calls.find(("f", ({}, (1, 1), None))) is None  # has no hash
    calls.keep(("f", ({}, 1)), "never")
    assert len(calls) == 2
    for i in range(2):
        calls.keep(("g", (i,)), str(i))
    assert len(calls) == 4  # of three keys
    calls.keep(("g", (2,)), "2")
    assert (len(calls), calls.find(key), calls.find(("g", (2,)))) == (1, None, "2")


VIEWS: dict[str, Callable[[Any], Any]] = {
    "channels_last": lambda a: np.ascontiguousarray(np.moveaxis(a, 1, -1)).transpose(0, 3, 1, 2) if a.ndim == 4 else a,
    "every_other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "fortran": np.asfortranarray,
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("which", ["x", "weight", "bias", "all"])
def test_views_are_read_as_they_are_seen_at_every_call(view: str, which: str, makes: list[Any]) -> None:
    given = dict(zip(("x", "weight", "bias"), arrays(), strict=True))
    expected = upconv.conv_transpose(**given, **LAYER)
    seen = {name: VIEWS[view](a) if which in (name, "all") else a for name, a in given.items()}
    for _ in range(3):
        before = len(makes)
        np.testing.assert_array_equal(upconv.conv_transpose(**seen, **LAYER), expected)
        assert len(makes) == before  # the like of it was checked: the shapes are the same
    seen["weight"] += 1
    changed = {**given, "weight": np.array(seen["weight"])}
    np.testing.assert_array_equal(upconv.conv_transpose(**seen, **LAYER), upconv.conv_transpose(**changed, **LAYER))
    out = np.empty_like(expected)
    assert upconv.conv_transpose(**seen, **LAYER, out=out) is out


def test_views_without_a_batch() -> None:
    x, w, b = arrays()
    expected = upconv.conv_transpose(x[0], w, b, **LAYER)
    for _ in range(2):
        np.testing.assert_array_equal(upconv.conv_transpose(np.asfortranarray(x[0]), w, b, **LAYER), expected)


def test_out_may_not_overlap_what_a_view_looks_at() -> None:
    x, w, b = arrays()
    room = np.zeros((2, 4, 10, 14), np.float32)
    view = np.lib.stride_tricks.as_strided(room, (2, 6, 5, 7), (1120, 4, 56, 8))
    upconv.conv_transpose(x, w, b, **LAYER)
    with pytest.raises(upconv.SpecError, match="out overlaps"):
        upconv.conv_transpose(view, w, b, **LAYER, out=room)


def test_torch_functions_know_lists_too() -> None:
    torch = pytest.importorskip("torch")
    from upconv.torch import memory

    x, w, b = (torch.from_numpy(a) for a in arrays())
    with torch.inference_mode():
        expected = upconv.torch.conv_transpose2d(x, w, b, (2, 2), (1, 1))
        upconv.torch.conv_transpose2d(x, w, b, [2, 2], [1, 1])
        known = len(memory._ready)
        torch.testing.assert_close(upconv.torch.conv_transpose2d(x, w, b, [2, 2], [1, 1]), expected, rtol=0, atol=0)
        torch.testing.assert_close(upconv.torch.conv_transpose2d(x, w, b, (2, 2), (1, 1)), expected, rtol=0, atol=0)
        assert len(memory._ready) == known
