"""The checkerboards of a whole model: every transposed layer, its score, and what to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from upconv.artifacts.gains import Score, score
from upconv.artifacts.layers import array_of, named_layers
from upconv.artifacts.remedies import advice
from upconv.shapes import overlap_range
from upconv.spec import ConvSpec, SpecError


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One transposed layer: `taps` are the fewest and most an output takes, `overlap` what they alone would score."""

    name: str
    spec: ConvSpec
    taps: tuple[int, int]
    overlap: Score
    score: Score
    advice: tuple[str, ...]

    def __str__(self) -> str:
        least, most = self.taps
        taps = f"{most} taps an output" if least == most else f"{least} to {most} taps an output"
        head = f"{self.name or 'layer'}: {self.spec}"
        return "\n".join([head, f"    {self.score}, {taps}", *(f"    - {line}" for line in self.advice)])


@dataclass(frozen=True, slots=True)
class Report:
    """Every transposed layer of a model, in the model's order; `print` shows them with their advice."""

    layers: tuple[LayerReport, ...]
    convolutions: int = 0

    @property
    def worst(self) -> LayerReport | None:
        """The layer whose checkerboard on a constant input is strongest, None where there is no transposed layer."""
        return max(self.layers, key=lambda layer: layer.score.constant, default=None)

    def __str__(self) -> str:
        if not self.layers:
            return f"no transposed convolution among {self.convolutions} convolutions: nothing here draws phases"
        return "\n".join(map(str, self.layers))


def report(model: Any) -> Report:
    """Score the checkerboard of every transposed layer of a model, with what to change.

    >>> import numpy as np
    >>> spec = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=(3, 3), stride=2, padding=1)
    >>> print(report((spec, np.ones((1, 1, 3, 3)))))
    layer: ConvTranspose2d 1 -> 1, kernel 3x3, stride 2x2, padding 1x1
        constant -6.3 dB, noise -12.2 dB (strong), 1 to 4 taps an output
        - kernel 3x3 is not divisible by stride 2x2, so outputs take 1 to 4 taps: use ConvTranspose2d(...), of the same output size
        - or enlarge by 2x2 (nearest or bilinear) and use an ordinary convolution of stride 1
        - or, for these weights as they are, artifacts.blurred(spec, weight): a fixed blur over one period

    `model` is a torch.nn.Module, a layer of upconv.nn or torch.nn, a (ConvSpec, weight) pair, or a list of these;
    it is only read. `upconv.artifacts.score` says what the figures mean. Raises TypeError for something else, SpecError
    for a layer whose weights are not there yet.
    """
    found, plain = [], 0
    for name, _, spec, weight in named_layers(model):
        if not spec.transposed:
            plain += 1
            continue
        try:
            scored = score(spec, array_of(weight))
        except SpecError as error:
            raise SpecError(f"{name or 'layer'}: {error}") from None
        found.append(LayerReport(name, spec, overlap_range(spec), score(spec), scored, advice(spec, scored)))
    return Report(tuple(found), plain)
