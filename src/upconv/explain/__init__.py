"""Text and pictures of a layer: sizes, phases, connections, overlap, round trip, and the code for each framework.

>>> from upconv.explain import explain
>>> explain(dict(kernel_size=4, stride=2, padding=1), 3).output_size
(6,)
"""

from upconv.explain.axis import Axis, Link
from upconv.explain.code import FRAMEWORKS, code
from upconv.explain.model import Explanation, RoundTrip, Term, as_spec, explain

__all__ = ["FRAMEWORKS", "Axis", "Explanation", "Link", "RoundTrip", "Term", "as_spec", "code", "explain"]
