"""upconv: the library for transposed convolution.

Every name is imported on first use, so that asking for a size needs neither NumPy nor a compiler.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

# fmt: off
# isort: off
if TYPE_CHECKING:
    from upconv import artifacts, conventions, explain, nn, shapes, streaming, wisdom
    from upconv.codegen.threads import get_num_threads, set_num_threads
    from upconv.execute import get_precise, set_precise
    from upconv.functional import conv, conv1d, conv2d, conv3d
    from upconv.functional import conv_transpose, conv_transpose1d, conv_transpose2d, conv_transpose3d, plan
    from upconv.gradients import conv_backward, conv_transpose_backward
    from upconv.spec import ConvSpec, SpecError

__version__ = "0.1.0"
__all__ = [
    "ConvSpec", "SpecError", "conv", "conv1d", "conv2d", "conv3d",
    "conv_transpose", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "conv_backward", "conv_transpose_backward", "plan", "get_num_threads", "set_num_threads", "get_precise", "set_precise",
    "artifacts", "conventions", "explain", "nn", "shapes", "streaming", "wisdom",
]
# fmt: on
__dir__ = __all__.copy
_HOMES = dict(ConvSpec="spec", SpecError="spec", conv_backward="gradients", conv_transpose_backward="gradients")
_HOMES |= dict(get_num_threads="codegen.threads", set_num_threads="codegen.threads", get_precise="execute", set_precise="execute")


def __getattr__(name: str) -> Any:  # a name with a home, a module, or a function of upconv.functional
    if name not in _HOMES and not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'functional')}")
        return globals().setdefault(name, getattr(home, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
