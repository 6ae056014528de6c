"""Size arithmetic of transposed and ordinary convolutions, on the standard library alone.

>>> from upconv import shapes
>>> shapes.conv_transpose_size((6, 6), 3, stride=2, padding=1, output_padding=1)
(12, 12)
"""

from upconv.shapes.phase import Phase, Tap, phases
from upconv.shapes.sizes import conv_size, conv_transpose_size, output_padding_for

__all__ = ["Phase", "Tap", "conv_size", "conv_transpose_size", "output_padding_for", "phases"]
