"""How other frameworks write the same layer: weight layout, kernel flips, and their padding in torch's words.

>>> import numpy as np
>>> from upconv import conventions
>>> keras_kernel = np.zeros((3, 3, 33, 16), np.float32)  # (height, width, out, in)
>>> conventions.weight_to_torch(keras_kernel, "keras").shape
(16, 33, 3, 3)
>>> conventions.padding_to_torch("keras", "same", kernel_size=3, stride=2, rank=2)
TorchPadding(padding=((0, 1), (0, 1)), output_padding=(0, 0))

Sources: `keras.layers.Conv2DTranspose` and `backend_utils` of Keras 3.15, `jax.lax.conv_transpose` of JAX 0.10, the
ConvTranspose operator of ONNX (opset 22), TRANSPOSE_CONV of TensorFlow Lite, `mlx.core.conv_transpose2d`. The rules
were run against Keras and JAX themselves, and the tests run them against ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upconv.spec import ConvSpec, SpecError, effective_kernel, per_dimension, transposed_extent

Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of a weight's axes (I input channels, O output channels, k every kernel axis) and how groups divide it.

    `divided` is the channel axis that holds one group's channels only, None where the framework knows no groups.
    `flipped` means that the kernel runs backwards along every spatial axis, seen from torch.
    """

    order: str
    divided: str | None
    flipped: bool = False


TRANSPOSED = {
    "torch": Layout("IOk", "O"),
    "onnx": Layout("IOk", "O"),
    "keras": Layout("kOI", None),
    "jax": Layout("kIO", "I", flipped=True),  # groups through jax.lax.conv_general_dilated's feature_group_count
    "jax_transpose_kernel": Layout("kOI", None),
    "flax": Layout("kIO", "I", flipped=True),
    "tflite": Layout("OkI", None),
    "mlx": Layout("OkI", "I"),
}
ORDINARY = {
    "torch": Layout("OIk", "I"),
    "onnx": Layout("OIk", "I"),
    "keras": Layout("kIO", "I"),
    "jax": Layout("kIO", "I"),
    "flax": Layout("kIO", "I"),
    "tflite": Layout("OkI", "I"),
    "mlx": Layout("OkI", "I"),
}


def _layout(framework: str, transposed: bool, groups: int) -> Layout:
    known = TRANSPOSED if transposed else ORDINARY
    if framework not in known:
        raise SpecError(f"framework is {framework!r}: use one of {', '.join(known)}")
    layout = known[framework]
    if groups != 1 and layout.divided is None:
        raise SpecError(
            f"{framework} has no transposed convolution with groups ({groups} were asked for): split the channels into "
            f"{groups} layers and concatenate their outputs"
        )
    return layout


def _axes(layout: Layout, rank: int) -> list[int]:
    """Where (I, O, *k) lie in the framework's weight."""
    first = layout.order.index("k")
    place = {letter: n + (rank - 1 if n > first else 0) for n, letter in enumerate(layout.order)}
    return [place["I"], place["O"], *range(first, first + rank)]


def _grouped(weight: NDArray[Any], layout: Layout, groups: int) -> NDArray[Any]:
    """Any layout as (groups, I/groups, O/groups, *k), torch's direction along the kernel."""
    rank = weight.ndim - 2
    w = weight.transpose(_axes(layout, rank))
    axis = 1 if layout.divided == "I" else 0
    if w.shape[axis] % groups:
        raise SpecError(f"weight of shape {weight.shape} has {w.shape[axis]} channels in groups {groups}: not divisible")
    size = w.shape[axis] // groups
    w = w.reshape(*w.shape[:axis], groups, size, *w.shape[axis + 1 :])
    w = np.moveaxis(w, axis, 0)
    return np.flip(w, tuple(range(3, 3 + rank))) if layout.flipped else w


def _ungrouped(w: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """The inverse of `_grouped`."""
    rank, groups = w.ndim - 3, w.shape[0]
    w = np.flip(w, tuple(range(3, 3 + rank))) if layout.flipped else w
    axis = 1 if layout.divided == "I" else 0
    w = np.moveaxis(w, 0, axis)
    w = w.reshape(*w.shape[:axis], groups * w.shape[axis + 1], *w.shape[axis + 2 :])
    return np.ascontiguousarray(w.transpose(np.argsort(_axes(layout, rank))))


def _convert(weight: Any, source: str, target: str, transposed: bool, groups: int) -> NDArray[Any]:
    array = np.asarray(weight)
    if array.ndim not in (3, 4, 5):
        raise SpecError(f"weight has shape {array.shape}: it must have 3, 4 or 5 dimensions for rank 1, 2 or 3")
    before, after = _layout(source, transposed, groups), _layout(target, transposed, groups)
    return _ungrouped(_grouped(array, before, groups), after)


def weight_to_torch(weight: Any, framework: str, *, transposed: bool = True, groups: int = 1) -> NDArray[Any]:
    """A framework's weight in torch's: (in, out // groups, *kernel) transposed, (out, in // groups, *kernel) else.

    >>> kernel = np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    >>> weight_to_torch(kernel, "jax").ravel(), weight_to_torch(kernel, "keras").ravel()
    (array([2., 1., 0.], dtype=float32), array([0., 1., 2.], dtype=float32))

    `framework` is torch, onnx, keras, jax (or flax; jax_transpose_kernel where transpose_kernel=True), tflite or mlx.
    Returns a new C-contiguous array. Raises SpecError for an unknown framework, or groups where it has none.
    """
    return _convert(weight, framework, "torch", transposed, groups)


def weight_from_torch(weight: Any, framework: str, *, transposed: bool = True, groups: int = 1) -> NDArray[Any]:
    """A torch weight in a framework's layout: the inverse of `weight_to_torch`.

    >>> weight_from_torch(np.zeros((16, 33, 3, 5), np.float32), "mlx").shape
    (33, 3, 5, 16)
    """
    return _convert(weight, "torch", framework, transposed, groups)


@dataclass(frozen=True, slots=True)
class TorchPadding:
    """Padding in the sense of torch.nn.ConvTranspose2d, as (before, after) pairs, and output_padding."""

    padding: Pairs
    output_padding: tuple[int, ...]


def padding_to_torch(
    framework: str,
    padding: Any,
    *,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    output_padding: Any = None,
    output_shape: Any = None,
    input_size: Any = None,
    rank: int | None = None,
) -> TorchPadding:
    """What a framework's padding of a transposed layer means in torch's words.

    >>> padding_to_torch("jax", [(2, 1)], kernel_size=3, stride=2)
    TorchPadding(padding=((0, 1),), output_padding=(0,))
    >>> padding_to_torch("onnx", "SAME_LOWER", kernel_size=3, stride=2)
    TorchPadding(padding=((1, 0),), output_padding=(0,))

    `padding` is what the framework takes: keras "same" or "valid"; jax and flax "SAME", "VALID" or (before, after)
    pairs around the dilated input; onnx an auto_pad string or a flat pads list (all befores, then all afters); tflite
    "SAME" or "VALID"; mlx and torch numbers. `output_shape` (spatial; onnx and tflite) needs `input_size`. `rank` is
    needed only where every argument is a single int.

    Raises SpecError where the framework cannot mean that, or where torch cannot: zeros before the first output.
    """
    _layout(framework, True, 1)
    given = (kernel_size, stride, dilation, output_padding, output_shape, input_size)
    found = rank or next((len(tuple(v)) for v in given if isinstance(v, (tuple, list))), None)
    if found is None:
        found = _rank_of(framework, padding)
    kernel = per_dimension("kernel_size", kernel_size, found, 1)
    strides = per_dimension("stride", stride, found, 1)
    spans = [effective_kernel(k, d) for k, d in zip(kernel, per_dimension("dilation", dilation, found, 1), strict=True)]
    extra = None if output_padding is None else per_dimension("output_padding", output_padding, found, 0)
    if (output_shape is None) != (input_size is None) and framework in ("onnx", "tflite"):
        raise SpecError("output_shape and input_size belong together: give both or neither")
    shapes = None
    if output_shape is not None:
        ins = per_dimension("input_size", input_size, found, 1)
        shapes = list(zip(ins, per_dimension("output_shape", output_shape, found, 1), strict=True))
    rule = {"keras": _keras, "jax": _jax, "jax_transpose_kernel": _jax, "flax": _jax, "onnx": _onnx, "tflite": _tflite}
    if framework not in rule:
        return _ends(_crops(padding, found), extra)
    return rule[framework](padding, spans, strides, extra, shapes)


def _rank_of(framework: str, padding: Any) -> int:
    if isinstance(padding, str) or not hasattr(padding, "__len__"):
        return 1
    return len(padding) // 2 if framework == "onnx" else len(padding)


def _crops(padding: Any, rank: int) -> Pairs:
    if hasattr(padding, "__len__") and len(padding) and all(hasattr(p, "__len__") for p in padding):
        return tuple((int(lo), int(hi)) for lo, hi in padding)
    return tuple((p, p) for p in per_dimension("padding", padding, rank, 0))


def _ends(pairs: Sequence[tuple[int, int]], extra: Sequence[int] | None = None) -> TorchPadding:
    """(before, after) crops, of which torch takes a negative `after` as output_padding."""
    if any(lo < 0 for lo, _ in pairs):
        lows = tuple(max(0, -lo) for lo, _ in pairs)
        raise SpecError(
            f"this padding puts {lows} zeros before the first output, which no torch layer does: use padding 0 there "
            f"and pad the result"
        )
    added = extra or (0,) * len(pairs)
    crops = tuple((lo, max(0, hi)) for lo, hi in pairs)
    return TorchPadding(crops, tuple(more + max(0, -hi) for more, (_, hi) in zip(added, pairs, strict=True)))


def _named(framework: str, padding: Any, *allowed: str) -> str:
    if not isinstance(padding, str) or padding not in allowed:
        raise SpecError(f"padding is {padding!r}: {framework} takes {' or '.join(map(repr, allowed))}")
    return padding


def _keras(padding: Any, spans: Sequence[int], strides: Sequence[int], extra: Any, _: Any) -> TorchPadding:
    """output = input*stride for "same", (input - 1)*stride + max(kernel, stride) for "valid", unless output_padding.

    With output_padding, "same" crops 2*(kernel // 2) - output_padding in all, the smaller half before (TensorFlow's
    rule, which Keras follows on JAX; its torch back end was off by one pixel, keras#22876).
    """
    name = _named("keras", padding, "same", "valid")
    pairs = []
    for n, (k, s) in enumerate(zip(spans, strides, strict=True)):
        if name == "valid":
            pairs.append((0, -max(s - k, 0) if extra is None else -extra[n]))
            continue
        total = k - s if extra is None else 2 * (k // 2) - extra[n]
        before = max(total // 2, 0)
        pairs.append((before, total - before))
    return _ends(pairs)


def _jax(padding: Any, spans: Sequence[int], strides: Sequence[int], extra: Any, _: Any) -> TorchPadding:
    """Strings as in Keras; pairs are zeros around the dilated input, so the crop is `kernel span - 1` less that."""
    if extra is not None and any(extra):
        raise SpecError("JAX and Flax have no output_padding: lengthen the second entry of the padding pair instead")
    if isinstance(padding, str):
        return _keras(_named("jax", padding, "SAME", "VALID").lower(), spans, strides, None, None)
    if len(padding) != len(spans):
        raise SpecError(f"padding {padding!r} has {len(padding)} pairs: give {len(spans)} for {len(spans)} dimensions")
    return _ends([(k - 1 - int(lo), k - 1 - int(hi)) for k, (lo, hi) in zip(spans, padding, strict=True)])


def _onnx(padding: Any, spans: Sequence[int], strides: Sequence[int], extra: Any, shapes: Any) -> TorchPadding:
    """The operator's equations: SAME_UPPER halves the total with the odd one after, everything else with it before."""
    added = tuple(extra or (0,) * len(spans))
    if not isinstance(padding, str) and padding is not None and shapes is None:
        flat = [int(p) for p in padding]
        if len(flat) != 2 * len(spans):
            raise SpecError(f"pads {flat} has {len(flat)} values: ONNX takes {2 * len(spans)}, all befores, then all afters")
        return _ends(list(zip(flat[: len(spans)], flat[len(spans) :], strict=True)), added)
    name = "NOTSET" if not isinstance(padding, str) else padding
    _named("onnx", name, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    if shapes is None and name in ("NOTSET", "VALID"):
        return _ends([(0, 0)] * len(spans), added)
    totals = []
    for n, (k, s) in enumerate(zip(spans, strides, strict=True)):
        size, wanted = shapes[n] if shapes else (1, s)
        totals.append(s * (size - 1) + added[n] + k - wanted)
    halves = [(max(total, 0) // 2, total - max(total, 0) // 2) for total in totals]
    return _ends([(a, b) if name == "SAME_UPPER" or b < 0 else (b, a) for a, b in halves], added)


def _tflite(padding: Any, spans: Sequence[int], strides: Sequence[int], _: Any, shapes: Any) -> TorchPadding:
    """The output shape is an input there; SAME crops what is too much, smaller half before, VALID all of it after."""
    name = _named("tflite", padding, "SAME", "VALID")
    if shapes is None:
        raise SpecError("TensorFlow Lite's TRANSPOSE_CONV takes its output size as an input: give output_shape and input_size")
    pairs = []
    for k, s, (size, wanted) in zip(spans, strides, shapes, strict=True):
        total = transposed_extent(size, k, s, 0, 0, 1) - wanted
        before = max(total, 0) // 2 if name == "SAME" else 0
        pairs.append((before, total - before))
    return _ends(pairs)


@dataclass(frozen=True, slots=True)
class Native:
    """A transposed layer in a framework's own arguments, and what is left to do around it.

    `extend` zeros are appended to each spatial dimension of the input (they add to no output, and make it longer by a
    stride each), and `crop` is cut from both ends of each spatial dimension of the result.
    """

    arguments: dict[str, Any]
    crop: Pairs
    extend: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """True where the framework says it all."""
        return not any(map(any, self.crop)) and not any(self.extend)


def padding_from_torch(spec: ConvSpec, framework: str) -> Native:
    """How a framework is told the padding and output_padding of a transposed layer.

    >>> spec = ConvSpec.make(transposed=True, in_channels=8, out_channels=4, kernel_size=4, stride=2, padding=1, rank=2)
    >>> padding_from_torch(spec, "jax").arguments
    {'padding': [(2, 2), (2, 2)]}
    >>> padding_from_torch(spec, "keras").arguments
    {'padding': 'same'}
    >>> padding_from_torch(spec, "onnx").arguments
    {'pads': [1, 1, 1, 1]}

    `framework` is torch, onnx, keras, jax, flax or mlx. Where it cannot say the layer, `crop` and `extend` tell
    what to do around it. Raises SpecError for a convolution, and for a padding_mode other than "zeros", which none has.
    """
    if not spec.transposed:
        raise SpecError(f"{spec} is a convolution: its padding means the same everywhere, zeros around the input")
    if spec.padding_mode != "zeros":
        raise SpecError(f"padding_mode {spec.padding_mode!r} of a transposed layer: no framework has it; use upconv itself")
    zeros = ((0, 0),) * spec.rank
    spans = [effective_kernel(k, d) for k, d in zip(spec.kernel_size, spec.dilation, strict=True)]
    if framework in ("jax", "jax_transpose_kernel", "flax"):
        ends = zip(spans, spec.padding, spec.output_padding, strict=True)
        return Native({"padding": [(k - 1 - lo, k - 1 - hi + more) for k, (lo, hi), more in ends]}, zeros, (0,) * spec.rank)
    if framework == "onnx":
        return _to_onnx(spec)
    if framework in ("torch", "mlx"):
        least = tuple(min(pair) for pair in spec.padding)
        crop = tuple((lo - p, hi - p) for (lo, hi), p in zip(spec.padding, least, strict=True))
        return Native({"padding": least, "output_padding": spec.output_padding}, crop, (0,) * spec.rank)
    if framework == "keras":
        return _to_keras(spec)
    raise SpecError(f"framework is {framework!r}: use one of torch, onnx, keras, jax, flax, mlx")


def _to_keras(spec: ConvSpec) -> Native:
    """ "same" or "valid" where they mean this layer; else "valid", the longest, and a crop."""
    ends = [(lo, hi - more) for (lo, hi), more in zip(spec.padding, spec.output_padding, strict=True)]
    for name in ("same", "valid"):
        found = padding_to_torch(
            "keras", name, kernel_size=spec.kernel_size, stride=spec.stride, dilation=spec.dilation, rank=spec.rank
        )
        if [(lo, hi - more) for (lo, hi), more in zip(found.padding, found.output_padding, strict=True)] == ends:
            return Native({"padding": name}, ((0, 0),) * spec.rank, (0,) * spec.rank)
    longer = tuple(max(-end, 0) % s for (_, end), s in zip(ends, spec.stride, strict=True))
    extend = tuple(max(-end, 0) // s for (_, end), s in zip(ends, spec.stride, strict=True))
    crop = tuple((lo, max(end, 0)) for lo, end in ends)
    return Native({"padding": "valid", "output_padding": longer}, crop, extend)


def _to_onnx(spec: ConvSpec) -> Native:
    """Word for word, but where output_padding reaches the stride, which ONNX Runtime refuses: it crops less then."""
    after, added, extend = [], [], []
    for (_, hi), more, s in zip(spec.padding, spec.output_padding, spec.stride, strict=True):
        if more >= s:
            hi, more = max(hi - more, 0), max(more - hi, 0)
        after.append(hi)
        added.append(more % s)
        extend.append(more // s)
    extra = {"output_padding": added} if any(added) else {}
    return Native({"pads": [lo for lo, _ in spec.padding] + after, **extra}, ((0, 0),) * spec.rank, tuple(extend))
