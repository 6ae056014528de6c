"""Strassen's additions, as code: what the products multiply, and what their results add up to.

Slices are quadrants, or quadrants of quadrants (`strassen_products.py` has the matrices): each level adds up what the one below
it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isqrt

import numpy as np

from upconv.codegen.ir import Function, Value
from upconv.kernels.strassen_products import RIGHT, SUM
from upconv.kernels.winograd_way import combine

Place = tuple[int, ...]
"""Of a slice, or of a slice in a product of halves: see `strassen_products.places`."""


def emit_right(f: Function, slices: list[Value]) -> Iterator[Value]:
    """What each product multiplies on the right, of the slices of the matrix row by row."""
    size = isqrt(len(slices))
    if size == 1:
        yield slices[0]
        return
    half = size // 2
    rows = [slices[i * size : (i + 1) * size] for i in range(size)]
    quadrants = [
        [value for row in part for value in row[at : at + half]] for part in (rows[:half], rows[half:]) for at in (0, half)
    ]
    for signs in RIGHT:
        yield from emit_right(f, [combine(f, signs, list(alike)) for alike in zip(*quadrants, strict=True)])


class Sums:
    """Slices of the result, of the products that `load` loads by their numbers; what several slices have in common is kept."""

    def __init__(self, f: Function, load: Callable[[int], Value]) -> None:
        self._f, self._load = f, load
        self._found: dict[tuple[Place, int], Value] = {}

    def emit(self, place: Place, first: int = 0) -> Value:
        """The slice at a place, of the products from the first on."""
        if (place, first) not in self._found:
            self._found[place, first] = self._emit(place, first)
        return self._found[place, first]

    def _emit(self, place: Place, first: int) -> Value:
        if not place:
            return self._load(first)
        signs, products = SUM[place[0]], len(SUM[0]) ** (len(place) - 1)
        used = np.flatnonzero(signs).tolist()
        return combine(self._f, signs[used], [self.emit(place[1:], first + n * products) for n in used])
