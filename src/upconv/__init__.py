"""upconv: the library for transposed convolution.

Every name is imported on first use, so that asking for a size needs neither NumPy nor a compiler.
"""

from importlib import import_module as _import
from importlib.util import find_spec as _find
from typing import TYPE_CHECKING, Any

# fmt: off
# isort: off
if TYPE_CHECKING:
    from upconv import nn, shapes
    from upconv.functional import conv, conv1d, conv2d, conv3d
    from upconv.functional import conv_transpose, conv_transpose1d, conv_transpose2d, conv_transpose3d
    from upconv.gradients import conv_backward, conv_transpose_backward
    from upconv.spec import ConvSpec, SpecError

__version__ = "0.1.0"
__all__ = [
    "ConvSpec", "SpecError", "conv", "conv1d", "conv2d", "conv3d",
    "conv_transpose", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "conv_backward", "conv_transpose_backward", "nn", "shapes",
]
# fmt: on
_HOMES = dict(ConvSpec="spec", SpecError="spec", conv_backward="gradients", conv_transpose_backward="gradients")


def __getattr__(name: str) -> Any:  # a name with a home, a module, or a function of upconv.functional
    if name not in _HOMES and not name.startswith("_") and _find(f"{__name__}.{name}"):
        return _import(f"{__name__}.{name}")
    if name in __all__:
        value = globals()[name] = getattr(_import(f"{__name__}.{_HOMES.get(name, 'functional')}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
