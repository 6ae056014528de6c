"""Size arithmetic of transposed and ordinary convolutions, on the standard library alone.

>>> from upconv import shapes
>>> shapes.conv_transpose_size((6, 6), 3, stride=2, padding=1, output_padding=1)
(12, 12)
>>> print(shapes.inverse((13, 13), kernel_size=3, stride=2, padding=1))
ConvTranspose2d(kernel_size=3, stride=2, padding=1)
>>> print(shapes.solve((32, 24), (64, 48), kernel_size=4)[0])
ConvTranspose2d(kernel_size=4, stride=2, padding=1)
"""

from upconv.shapes.chain import Chain, Step, chain
from upconv.shapes.counts import multiply_adds, overlap_range, taps_per_output
from upconv.shapes.geometry import Geometry
from upconv.shapes.inverse import inverse
from upconv.shapes.phase import Phase, Tap, phases
from upconv.shapes.sizes import conv_size, conv_transpose_size, output_padding_for
from upconv.shapes.solve import Solution, nearest, solve

__all__ = [
    "Chain",
    "Geometry",
    "Phase",
    "Solution",
    "Step",
    "Tap",
    "chain",
    "conv_size",
    "conv_transpose_size",
    "inverse",
    "multiply_adds",
    "nearest",
    "output_padding_for",
    "overlap_range",
    "phases",
    "solve",
    "taps_per_output",
]
