"""The example models, small, through accelerate: outputs kept, everything joined that can be."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from upconv.torch import accelerate, accelerating, restore  # noqa: E402

PATH = Path(__file__).resolve().parents[1] / "examples" / "models.py"


@pytest.fixture(scope="module")
def zoo() -> Any:
    spec = importlib.util.spec_from_file_location("example_models", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = {
    "dcgan": (lambda z: z.dcgan(10, 4), (2, 10, 1, 1), 5),
    "unet": (lambda z: z.UNet(2, 3, 2, (4, 8, 16)), (1, 3, 16, 12), 10),
    "unet3d": (lambda z: z.UNet(3, 1, 3, (4, 8)), (1, 1, 4, 6, 8), 6),
    "hifigan": (lambda z: z.HiFiGAN(16, (4, 2), (8, 4), (3, 7), (1, 3)), (1, 80, 9), 10),
}
"""Name -> (maker, input, how many layers are joined with what follows)."""


@pytest.mark.parametrize("name", list(SMALL))
def test_outputs_stay_and_layers_are_joined(zoo: Any, name: str) -> None:
    torch.manual_seed(0)
    maker, shape, joined = SMALL[name]
    model, x = maker(zoo).eval(), torch.randn(shape)
    with torch.inference_mode():
        expected = model(x)
        candidates = accelerating._candidates(model)
        assert sum(c.fused is not None for c in candidates) == joined
        found = accelerate(model)(x)
        assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
        assert torch.equal(restore(model)(x), expected)


def test_every_example_is_made_with_its_input(zoo: Any) -> None:
    """On no memory at all: what matters is that sizes fit."""
    shapes = {"dcgan": (64, 3, 64, 64), "unet": (1, 2, 256, 256), "hifigan": (1, 1, 22016), "unet3d": (1, 3, 64, 64, 64)}
    for name, shape in shapes.items():
        with torch.device("meta"):
            maker, size = zoo.MODELS[name]
            assert maker()(torch.empty(size)).shape == shape
