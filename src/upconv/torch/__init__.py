"""PyTorch front end: drop-in layers and functions whose CPU work, gradients included, runs in this library's kernels.

>>> import torch
>>> import upconv.torch as nn
>>> layer = nn.ConvTranspose2d(16, 33, 3, stride=2)
>>> layer
ConvTranspose2d(16, 33, kernel_size=(3, 3), stride=(2, 2))
>>> layer(torch.randn(20, 16, 5, 10)).shape
torch.Size([20, 33, 11, 21])

A name that is not here is torch.nn's, so that `import upconv.torch as nn` may replace `import torch.nn as nn` whole.
"""

from __future__ import annotations

from typing import Any

try:
    import torch
except ModuleNotFoundError as error:
    raise ImportError(
        "upconv.torch needs PyTorch, which is not installed: pip install 'upconv[torch]' (pytorch.org has smaller, "
        "CPU-only builds). The rest of upconv works on NumPy arrays without it."
    ) from error

from upconv.torch.accelerating import accelerate, restore
from upconv.torch.calls import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from upconv.torch.layers import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    why,
)

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "accelerate",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "restore",
    "why",
]


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(torch.nn, name)
