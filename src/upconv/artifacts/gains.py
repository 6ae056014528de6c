"""What each phase of a transposed layer does to its input, and a score for how much the phases differ.

On a constant input a phase's output is its gain, the sum of its taps. Where the gains differ, a constant comes out as a
pattern that repeats every `stride` outputs: the checkerboard.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log10, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv import shapes
from upconv.artifacts.layers import transposed_of, weight_in, weight_of
from upconv.shapes import Phase
from upconv.spec import ConvSpec, integer

VISIBLE = -40.0  # dB: a ripple of 1 % of the mean, about the least contrast that the eye sees
STRONG = -20.0  # dB: a ripple of 10 % of the mean


@dataclass(frozen=True, slots=True)
class Score:
    """How strong a layer's checkerboard is, in dB relative to the mean; -inf is none at all.

    `constant`: on inputs that are constant in space, the ripple's root mean square over that of the mean.
    `noise`: on white noise, the same for the phases' root mean squares, how uneven the texture is.
    """

    constant: float
    noise: float

    @property
    def verdict(self) -> str:
        """`clean`, `visible` (a ripple over 1 % of the mean) or `strong` (over 10 %) on a constant input."""
        if np.isnan(self.constant):
            return "not a number"
        return "clean" if self.constant < VISIBLE else "visible" if self.constant < STRONG else "strong"

    def __str__(self) -> str:
        parts = (f"{n} {'clean' if v < -120 else f'{v:.1f} dB'}" for n, v in (("constant", self.constant), ("noise", self.noise)))
        return f"{', '.join(parts)} ({self.verdict})"


def _phases(spec: ConvSpec) -> tuple[Phase, ...]:
    return shapes.phases(spec.kernel_size, spec.stride, spec.padding, spec.dilation)


def _taps(weight: NDArray[np.float64], phase: Phase) -> NDArray[np.float64]:
    """The weights of one phase: (in_channels, out_channels // groups, taps)."""
    if not phase.taps:
        return np.zeros((*weight.shape[:2], 0))
    index = tuple(np.array([tap.kernel for tap in phase.taps]).T)
    return weight[(slice(None), slice(None), *index)]  # type: ignore[no-any-return]


def phase_gains(layer: Any, weight: Any = None) -> NDArray[np.float64]:
    """Each phase's sum of taps: (in_channels, out_channels // groups, *stride).

    >>> from upconv import ConvSpec
    >>> spec = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=3, stride=2)
    >>> phase_gains(spec, [[[0.5, 1, 0.5]]])
    array([[[1., 1.]]])

    Entry `a` of a dimension belongs to the outputs `a + stride*q`. `weight` is (in_channels, out_channels // groups,
    *kernel); None takes the layer's own, or ones for a ConvSpec, whose gains are the overlap. Raises SpecError for a
    convolution or a weight of another shape.
    """
    spec, w = _spec_and_weight(layer, weight)
    gains = np.stack([_taps(w, phase).sum(-1) for phase in _phases(spec)], -1)
    return gains.reshape(*w.shape[:2], *spec.stride)


def phase_powers(layer: Any, weight: Any = None) -> NDArray[np.float64]:
    """The variance of each phase's output on white noise of variance 1: (out_channels, *stride).

    >>> from upconv import ConvSpec
    >>> spec = ConvSpec.make(transposed=True, in_channels=4, out_channels=1, kernel_size=3, stride=2)
    >>> phase_powers(spec)
    array([[8., 4.]])

    Arguments and errors are those of `phase_gains`.
    """
    spec, w = _spec_and_weight(layer, weight)
    energy = np.stack([np.square(_taps(w, phase)).sum(-1) for phase in _phases(spec)], -1)
    grouped = energy.reshape(spec.groups, spec.in_channels // spec.groups, *energy.shape[1:]).sum(1)
    return grouped.reshape(spec.out_channels, *spec.stride)


def phase_spectra(layer: Any, weight: Any = None, points: int = 32) -> NDArray[np.float64]:
    """The magnitude of each phase's frequency response, root mean square over channel pairs: (*stride, *(points,)*rank).

    >>> from upconv import ConvSpec
    >>> spec = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=4, stride=2, padding=1)
    >>> phase_spectra(spec, [[[0.25, 0.75, 0.75, 0.25]]], points=3)
    array([[1. , 0.79056942, 0.5 ],
           [1. , 0.79056942, 0.5 ]])

    The frequencies of a dimension are `numpy.linspace(0, 0.5, points)` cycles an input position. Phases with equal
    magnitudes treat a texture of that frequency alike; at frequency 0 these are the gains. Arguments and errors are
    those of `phase_gains`.
    """
    spec, w = _spec_and_weight(layer, weight)
    grid = np.linspace(0, 0.5, integer("points", points, 2))
    spectra = []
    for phase in _phases(spec):
        response = _taps(w, phase).astype(complex)
        offsets = np.array([tap.offset for tap in phase.taps]).reshape(-1, spec.rank)
        waves = np.exp(2j * np.pi * np.einsum("f,td->tdf", grid, offsets))
        names = "xyz"[: spec.rank]
        product = np.einsum(f"cmt,{','.join('t' + n for n in names)}->cm{names}", response, *np.moveaxis(waves, 1, 0))
        spectra.append(np.sqrt(np.mean(np.abs(product) ** 2, axis=(0, 1))))
    return np.stack(spectra).reshape(*spec.stride, *(points,) * spec.rank)


def score(layer: Any, weight: Any = None) -> Score:
    """How strong the checkerboard of a transposed layer is, with these weights.

    >>> from upconv import ConvSpec
    >>> uneven = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=3, stride=2)
    >>> print(score(uneven))
    constant -9.5 dB, noise -15.3 dB (strong)
    >>> even = ConvSpec.make(transposed=True, in_channels=1, out_channels=1, kernel_size=4, stride=2)
    >>> score(even).constant
    -inf

    The input's channels are taken as independent, with values of mean 0 and variance 1 a channel, so the score does not
    hang on the channels' signs: energies are summed over all channel pairs before they are compared. -40 dB is a
    ripple of 1 % of the mean, -20 dB one of 10 %. Bias is left out, borders too. Without weights (a ConvSpec alone) all
    taps are taken as 1, which scores the overlap that the arguments make. Arguments and errors are those of
    `phase_gains`.
    """
    spec, w = _spec_and_weight(layer, weight)
    gains = phase_gains(spec, w).reshape(-1, prod(spec.stride))
    texture = np.sqrt(phase_powers(spec, w)).reshape(-1, prod(spec.stride))
    return Score(_ripple(gains), _ripple(texture))


def _ripple(values: NDArray[np.float64]) -> float:
    """Energy of what varies along the last axis over that of its mean, in dB; -inf where only rounding varies."""
    mean = values.mean(-1, keepdims=True)
    varying, steady = float(np.square(values - mean).mean()), float(np.square(mean).mean())
    if np.isnan(varying) or np.isnan(steady):
        return float("nan")
    if varying <= 1e-30 * float(np.square(values).mean()):
        return float("-inf")
    return 10 * log10(varying / steady) if steady else float("inf")


def _spec_and_weight(layer: Any, weight: Any) -> tuple[ConvSpec, NDArray[np.float64]]:
    spec = transposed_of(layer)
    if weight is None and not isinstance(layer, ConvSpec):
        weight = weight_in(layer)
    return spec, weight_of(spec, weight)
