"""Checkerboards: where they come from in a layer, how strong they are in trained weights, and how to start without them.

>>> from upconv import ConvSpec, artifacts
>>> spec = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=(3, 3), stride=2, padding=1)
>>> artifacts.overlap(spec)
array([[1, 2],
       [2, 4]])
>>> print(artifacts.score(spec))
constant -6.3 dB, noise -12.2 dB (strong)
>>> print(artifacts.score(spec, artifacts.bilinear(spec)))
constant clean, noise -12.2 dB (clean)

Everything starts from `upconv.shapes.phases`: a checkerboard is a difference between a layer's phases.
"""

from upconv.artifacts.cost import Cost, Costs, multiply_adds
from upconv.artifacts.gains import Score, phase_gains, phase_powers, phase_spectra, score
from upconv.artifacts.initialise import bilinear, fans, icnr, kaiming
from upconv.artifacts.overlap import overlap
from upconv.artifacts.remedies import blurred
from upconv.artifacts.report import LayerReport, Report, report

__all__ = [
    "Cost",
    "Costs",
    "LayerReport",
    "Report",
    "Score",
    "bilinear",
    "blurred",
    "fans",
    "icnr",
    "kaiming",
    "multiply_adds",
    "overlap",
    "phase_gains",
    "phase_powers",
    "phase_spectra",
    "report",
    "score",
]
