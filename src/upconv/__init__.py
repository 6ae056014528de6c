"""upconv: the library for transposed convolution."""

from upconv.functional import conv, conv_transpose
from upconv.spec import ConvSpec, SpecError

__all__ = ["ConvSpec", "SpecError", "conv", "conv_transpose"]
__version__ = "0.1.0"
