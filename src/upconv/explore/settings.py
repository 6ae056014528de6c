"""What the page's controls say, as a value: made from an address's query, checked by making the layer it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlencode

from upconv.spec import ConvSpec, SpecError, per_dimension

DIMENSIONS = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}
PER_DIMENSION = ("size", "kernel", "stride", "padding", "output_padding", "dilation")


@dataclass(frozen=True, slots=True)
class Settings:
    """One position of every control. Anything can be set; `spec` says whether a layer can have it.

    >>> Settings.read({"size": "6", "kernel": "3", "stride": "2"}).spec().output_size((6,))
    (13,)
    """

    size: tuple[Any, ...] = (5, 5)
    kernel: tuple[Any, ...] = (4, 4)
    stride: tuple[Any, ...] = (2, 2)
    padding: tuple[tuple[Any, Any], ...] = ((1, 1), (1, 1))
    output_padding: tuple[Any, ...] = (0, 0)
    dilation: tuple[Any, ...] = (1, 1)
    transposed: bool = True
    in_channels: Any = 1
    out_channels: Any = 1
    groups: Any = 1
    padding_mode: str = "zeros"

    @property
    def rank(self) -> int:
        return len(self.size)

    def spec(self) -> ConvSpec:
        """The layer, checked for its input size too. Raises SpecError with what to change."""
        spec = ConvSpec.make(
            transposed=self.transposed,
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            kernel_size=self.kernel,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding if self.transposed else 0,
            dilation=self.dilation,
            groups=self.groups,
            padding_mode=self.padding_mode,
            rank=self.rank,
        )
        spec.output_size(per_dimension("input_size", self.size, self.rank, 1))
        return spec

    def query(self) -> str:
        """These settings as the query of the page's address.

        >>> Settings(size=(6,), kernel=(3,), stride=(2,), padding=((0, 1),), output_padding=(0,), dilation=(1,)).query()
        'size=6&kernel=3&stride=2&padding=0:1&output_padding=0&dilation=1'
        """
        said = {name: ",".join(map(_written, getattr(self, name))) for name in PER_DIMENSION}
        for field in fields(self):
            if field.name not in said and getattr(self, field.name) != field.default:
                said[field.name] = str(getattr(self, field.name)).lower()
        return urlencode(said, safe=",:")

    @classmethod
    def read(cls, query: Mapping[str, Any]) -> Settings:
        """From a query, with torch's defaults for what it leaves out; from none, a layer to begin with.

        Raises SpecError for a name or a value that means nothing.
        """
        unknown = sorted(set(query) - {field.name for field in fields(cls)})
        if unknown:
            raise SpecError(f"{unknown[0]!r} is no setting: use {', '.join(field.name for field in fields(cls))}")
        rank = max((str(query[name]).count(",") + 1 for name in PER_DIMENSION if name in query), default=2)
        if rank not in DIMENSIONS:
            raise SpecError(f"{rank} spatial dimensions: layers have 1, 2 or 3")
        plain = cls()
        first = {name: getattr(plain, name)[0] for name in PER_DIMENSION}
        if set(query) & set(PER_DIMENSION):
            first |= {"stride": 1, "padding": (0, 0)}
        values: dict[str, Any] = {name: (value,) * rank for name, value in first.items()}
        for name in PER_DIMENSION:
            if name in query:
                values[name] = _values(name, str(query[name]), rank)
        for name in ("in_channels", "out_channels", "groups"):
            if name in query:
                values[name] = _number(name, str(query[name]))
        transposed = str(query.get("transposed", "true")).lower() != "false"
        return cls(**values, transposed=transposed, padding_mode=str(query.get("padding_mode", "zeros")))


def _written(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return str(value[0]) if value[0] == value[1] else f"{value[0]}:{value[1]}"


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SpecError(f"{name} is {text!r}: give a whole number") from None


def _values(name: str, text: str, rank: int) -> tuple[Any, ...]:
    parts = text.split(",")
    if len(parts) == 1:
        parts *= rank
    if len(parts) != rank:
        raise SpecError(f"{name} {text!r} has {len(parts)} values: give one, or {rank} for {rank} dimensions")
    if name != "padding":
        return tuple(_number(name, part) for part in parts)
    pairs = []
    for part in parts:
        before, colon, after = part.partition(":")
        pairs.append((_number(name, before), _number(name, after if colon else before)))
    return tuple(pairs)
