"""Strassen's seven products: a matrix product of halves with one multiplication less.

Both operands are cut in two in each dimension, into quadrants numbered row by row. `LEFT` and `RIGHT` say what each product
multiplies, `SUM` how the quadrants of the result are added up from the products:

>>> import numpy as np
>>> a, b = np.array([[1, 2], [3, 4]]), np.array([[5, 6], [7, 8]])
>>> products = (LEFT @ a.ravel()) * (RIGHT @ b.ravel())          # 7 multiplications
>>> (SUM @ products).reshape(2, 2).tolist() == (a @ b).tolist()
True

Each of the seven can be taken so again: 49 products of quarters where the direct sum has 64.

Source: Strassen, Gaussian Elimination is not Optimal, 1969. Winograd's variant takes three additions fewer, and errs half as
much again.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEFT = np.array(
    [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [-1, 0, 1, 0], [0, 1, 0, -1]]
)  # fmt: skip
RIGHT = np.array(
    [[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]]
)  # fmt: skip
SUM = np.array([[1, 0, 0, 1, -1, 0, 1], [0, 0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0, 0], [1, -1, 1, 0, 0, 1, 0]])

PRODUCTS = {1: 1, 2: 7, 4: 49}
"""Slices of each dimension -> products: of halves, and of quarters, where the products of halves are taken so as well."""


SLICES = {1: "", 2: "seven products of halves in place of eight, ", 4: "49 products of quarters in place of 64, "}
"""What a plan says of them."""


def left(slices: int) -> NDArray[np.float64]:
    """(product, slice): what each product multiplies on the left, slices of the matrix row by row.

    >>> left(2).shape, left(4).shape
    ((7, 4), (49, 16))
    """
    matrix, size = np.eye(1), 1
    while size < slices:
        # product, then row and column of halves, and of what is in them
        cells = np.kron(LEFT, matrix).reshape(-1, 2, 2, size, size)
        size *= 2
        matrix = cells.swapaxes(2, 3).reshape(-1, size * size)
    return matrix


def sliced(place: NDArray[np.int64], slices: int, row: int, column: int) -> NDArray[np.int64]:
    """Places of a matrix's elements (-1 for zeros) in the slice that comes first, repeated for every slice along the next to last
    axis; slices are so many places apart from row to row and from column to column.

    >>> sliced(np.array([[[5], [-1]]]), 2, 100, 10)[0].tolist()
    [[5], [-1], [15], [-1], [105], [-1], [115], [-1]]
    """
    steps = [i * row + j * column for i, j in np.ndindex(slices, slices)]
    return np.concatenate([np.where(place < 0, -1, place + step) for step in steps], axis=-2)


def with_left(slices: int, matrix: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """What each product multiplies on the left, of slices that are transformed by a matrix (None: that are not) as well."""
    if slices == 1:
        return matrix
    return np.asarray(np.kron(left(slices), np.eye(1) if matrix is None else matrix), np.float64)


def places(slices: int) -> list[tuple[int, ...]]:
    """The slices of a result: for each, the number of its quadrant, and in this of its quadrant.

    Those that have all but the first in common follow one another: the products of quarters are added up once for all four.

    >>> places(1), places(2)
    ([()], [(0,), (1,), (2,), (3,)])
    """
    if slices == 1:
        return [()]
    return [(outer, *inner) for inner in places(slices // 2) for outer in range(4)]


def row_and_column(place: tuple[int, ...]) -> tuple[int, int]:
    """Of a slice.

    >>> [row_and_column(place) for place in places(4)[:4]]
    [(0, 0), (0, 2), (2, 0), (2, 2)]
    """
    row = column = 0
    for quadrant in place:
        row, column = 2 * row + quadrant // 2, 2 * column + quadrant % 2
    return row, column
