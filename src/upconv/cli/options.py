"""Options that several commands share, and how their text is read: `2`, `2,1`, `1:2,0:1`, `same`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from upconv.spec import SpecError


def ints(name: str, text: str | None) -> Any:
    """`3` as an int, `3,5` or `3x5` as a tuple.

    >>> ints("stride", "2"), ints("stride", "2,1"), ints("kernel", "3x5")
    (2, (2, 1), (3, 5))
    """
    if text is None:
        return None
    try:
        values = tuple(int(part) for part in text.lower().replace("x", ",").split(","))
    except ValueError:
        raise SpecError(f"{name} is {text!r}: give a whole number, or one a dimension as in 2,1") from None
    return values if len(values) > 1 else values[0]


def padding_of(text: str) -> Any:
    """As `ints`, and "same", "valid" or before:after pairs.

    >>> padding_of("1,2"), padding_of("0:1,2:3"), padding_of("1:2"), padding_of("same")
    ((1, 2), ((0, 1), (2, 3)), ((1, 2),), 'same')
    """
    if text in ("same", "valid"):
        return text
    if ":" not in text:
        return ints("padding", text)
    try:
        return tuple((int(a), int(b)) for a, b in (part.split(":") for part in text.split(",")))
    except ValueError:
        raise SpecError(
            f"padding is {text!r}: give a whole number, one a dimension as in 1,2, before:after pairs as in 0:1,0:1, same or valid"
        ) from None


def activation_of(text: str | None) -> Any:
    """A name, or a name and its parameter.

    >>> activation_of("relu"), activation_of("leaky_relu:0.1")
    ('relu', ('leaky_relu', 0.1))
    """
    if text is None or ":" not in text:
        return text
    name, _, parameter = text.partition(":")
    try:
        return name, float(parameter)
    except ValueError:
        raise SpecError(f"activation is {text!r}: give a name, or name:number as in leaky_relu:0.1") from None


PER_DIMENSION = "One number, or one a dimension: 2,1"
Stride = Annotated[str, typer.Option("--stride", "-s", metavar="N", help=PER_DIMENSION)]
Padding = Annotated[str, typer.Option("--padding", "-p", metavar="N", help="As torch's; also 0:1,0:1, same or valid")]
OutputPadding = Annotated[str, typer.Option("--output-padding", metavar="N", help=PER_DIMENSION)]
Dilation = Annotated[str, typer.Option("--dilation", "-d", metavar="N", help=PER_DIMENSION)]
Groups = Annotated[int, typer.Option("--groups", "-g", metavar="N", help="How many groups the channels fall into")]
OutputSize = Annotated[str | None, typer.Option("--output-size", metavar="N", help="The size wanted; chooses the output padding")]
Conv = Annotated[bool, typer.Option("--conv", help="An ordinary convolution instead of a transposed one")]
PaddingMode = Annotated[str, typer.Option("--padding-mode", metavar="NAME", help="zeros, circular, reflect or replicate")]
ActivationName = Annotated[
    str | None,
    typer.Option("--activation", "-a", metavar="NAME", help="relu, leaky_relu:0.1, elu, sigmoid, tanh, silu"),
]
