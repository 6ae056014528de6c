"""Four models that live on transposed convolutions, in plain torch.nn with random weights, to try accelerate on.

    python examples/models.py                  # all four
    python examples/models.py hifigan unet     # some

Each is what its paper describes, at the size people run it; see `MODELS` for the inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def dcgan(noise: int = 100, width: int = 64, channels: int = 3) -> nn.Module:
    """DCGAN's generator (Radford, Metz and Chintala, 2015): noise (N, 100, 1, 1) to pictures (N, 3, 64, 64)."""
    sizes = [8 * width, 4 * width, 2 * width, width]
    layers: list[nn.Module] = [nn.ConvTranspose2d(noise, sizes[0], 4, 1, 0, bias=False)]
    for before, after in pairwise(sizes):
        layers += [nn.BatchNorm2d(before), nn.ReLU(True), nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(width), nn.ReLU(True), nn.ConvTranspose2d(width, channels, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.Tanh())


class UNet(nn.Module):
    """U-Net (Ronneberger, Fischer and Brox, 2015; 3-D: Cicek et al., 2016) with padded, normalised convolutions.

    Sizes must be divisible by 2 ** (len(widths) - 1).
    """

    def __init__(self, rank: int, channels: int, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        conv, up = getattr(nn, f"Conv{rank}d"), getattr(nn, f"ConvTranspose{rank}d")
        norm = getattr(nn, f"BatchNorm{rank}d")

        def double(before: int, after: int) -> nn.Sequential:
            return nn.Sequential(
                conv(before, after, 3, padding=1, bias=False), norm(after), nn.ReLU(True),
                conv(after, after, 3, padding=1, bias=False), norm(after), nn.ReLU(True),
            )  # fmt: skip

        steps = list(pairwise(widths))
        self.first = double(channels, widths[0])
        self.shrink = getattr(nn, f"MaxPool{rank}d")(2)
        self.down = nn.ModuleList(double(a, b) for a, b in steps)
        self.up = nn.ModuleList(up(b, a, 2, 2) for a, b in reversed(steps))
        self.merge = nn.ModuleList(double(2 * a, a) for a, _ in reversed(steps))
        self.last = conv(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.first(x)]
        for block in self.down:
            kept.append(block(self.shrink(kept[-1])))
        x = kept.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([kept.pop(), up(x)], 1))
        return self.last(x)  # type: ignore[no-any-return]


class HiFiGAN(nn.Module):
    """HiFi-GAN's generator, version 1 (Kong, Kim and Bae, 2020): mel bands (N, 80, T) to audio (N, 1, 256 T)."""

    def __init__(
        self,
        width: int = 512,
        rates: Sequence[int] = (8, 8, 2, 2),
        kernels: Sequence[int] = (16, 16, 4, 4),
        blocks: Sequence[int] = (3, 7, 11),
        dilations: Sequence[int] = (1, 3, 5),
    ) -> None:
        super().__init__()

        def residual(channels: int, kernel: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Sequential(
                    nn.LeakyReLU(0.1), nn.Conv1d(channels, channels, kernel, padding="same", dilation=d),
                    nn.LeakyReLU(0.1), nn.Conv1d(channels, channels, kernel, padding="same"),
                )
                for d in dilations
            )  # fmt: skip

        self.first = nn.Conv1d(80, width, 7, padding=3)
        self.up, self.blocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(rates, kernels, strict=True):
            self.up.append(
                nn.Sequential(nn.LeakyReLU(0.1), nn.ConvTranspose1d(width, width // 2, kernel, rate, (kernel - rate) // 2))
            )
            width //= 2
            self.blocks.append(nn.ModuleList(residual(width, k) for k in blocks))
        self.last = nn.Sequential(nn.LeakyReLU(), nn.Conv1d(width, 1, 7, padding=3), nn.Tanh())

    def forward(self, mel: Tensor) -> Tensor:
        x = self.first(mel)
        for up, blocks in zip(self.up, self.blocks, strict=True):
            x = up(x)
            total = torch.zeros_like(x)
            for block in blocks:
                y = x
                for step in block:
                    y = y + step(y)
                total = total + y
            x = total / len(blocks)
        return self.last(x)  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dcgan": (dcgan, (64, 100, 1, 1)),
    "dcgan batch 1": (dcgan, (1, 100, 1, 1)),
    "unet": (lambda: UNet(2, 3, 2, (64, 128, 256, 512)), (1, 3, 256, 256)),
    "hifigan": (HiFiGAN, (1, 80, 86)),
    "unet3d": (lambda: UNet(3, 1, 3, (16, 32, 64, 128)), (1, 1, 64, 64, 64)),
}
"""Name -> (maker, shape of its input)."""


def make(name: str) -> tuple[nn.Module, Tensor]:
    """A model in eval mode, its BatchNorm statistics as after some training, and an input for it."""
    torch.manual_seed(0)
    maker, shape = MODELS[name]
    model = maker().eval()
    for module in model.modules():
        statistics: Any = module
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            statistics.running_mean.normal_(0, 0.1)
            statistics.running_var.uniform_(0.5, 1.5)
    return model, torch.randn(shape)


if __name__ == "__main__":
    import upconv.torch

    for chosen in sys.argv[1:] or MODELS:
        print(chosen)
        upconv.torch.accelerate(*make(chosen))
