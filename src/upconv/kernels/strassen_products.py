"""Strassen's seven products: a matrix product of halves with one multiplication less.

Both operands are cut in two in each dimension, into quadrants numbered row by row. `LEFT` and `RIGHT` say what each product
multiplies, `SUM` how the quadrants of the result are added up from the products:

>>> import numpy as np
>>> a, b = np.array([[1, 2], [3, 4]]), np.array([[5, 6], [7, 8]])
>>> products = (LEFT @ a.ravel()) * (RIGHT @ b.ravel())          # 7 multiplications
>>> (SUM @ products).reshape(2, 2).tolist() == (a @ b).tolist()
True

Source: Strassen, Gaussian Elimination is not Optimal, 1969. Winograd's variant takes three additions fewer, and errs half as
much again.
"""

from __future__ import annotations

import numpy as np

LEFT = np.array(
    [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [-1, 0, 1, 0], [0, 1, 0, -1]]
)  # fmt: skip
RIGHT = np.array(
    [[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]]
)  # fmt: skip
SUM = np.array([[1, 0, 0, 1, -1, 0, 1], [0, 0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0, 0], [1, -1, 1, 0, 0, 1, 0]])

PRODUCTS = {1: 1, 2: 7}
"""Halves of each dimension -> products."""
