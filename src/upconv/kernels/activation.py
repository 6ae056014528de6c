"""Activations on vectors in registers.

The exponential is the usual reduction e**x = 2**n * e**r with |r| <= ln(2)/2 and the Taylor series of e**r, taken far enough
that its remainder is below one unit in the last place; 2**n is made by shifting n into the exponent field (Cody and Waite,
Software Manual for the Elementary Functions, 1980).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial, inf

from upconv.codegen.ir import Function, Value, element_of, lanes_of, vector
from upconv.spec import Activation


@dataclass(frozen=True, slots=True)
class _Format:
    """A floating-point format: what rounding by addition, splitting ln 2 and the series need."""

    integer: str
    mantissa: int
    terms: int
    ln2_high: float
    ln2_low: float
    low: float
    high: float


_FORMATS = {
    "float": _Format("i32", 23, 8, 0.693359375, -2.12194440e-4, -87.0, 88.0),
    "double": _Format("i64", 52, 14, 0.6931471803691238, 1.9082149292705877e-10, -708.0, 709.0),
}


def emit_activation(f: Function, x: Value, activation: Activation | None) -> Value:
    """The activation of x; NaN stays NaN."""
    if activation is None:
        return x
    zero, one = f.splat(0.0, x.type), f.splat(1.0, x.type)
    a = f.splat(activation.parameter, x.type)
    match activation.name:
        case "relu":
            return f.select(f.fcompare("olt", x, zero), zero, x)
        case "leaky_relu":
            return f.select(f.fcompare("ogt", x, zero), x, f.fmul(a, x))
        case "elu":
            return f.select(f.fcompare("ogt", x, zero), x, f.fmul(a, expm1(f, x)))
        case "sigmoid":
            return f.fdiv(one, f.fadd(one, exp(f, f.fsub(zero, x))))
        case "silu":
            return f.fdiv(x, f.fadd(one, exp(f, f.fsub(zero, x))))
        case "tanh":
            return _tanh(f, x)
    raise AssertionError(activation)


def _reduced(f: Function, x: Value) -> tuple[Value, Value]:
    """r = x - n ln 2 and the vector whose low bits hold n."""
    form = _FORMATS[element_of(x.type)]
    for bound, op in ((form.low, "olt"), (form.high, "ogt")):
        limit = f.splat(bound, x.type)
        x = f.select(f.fcompare(op, x, limit), limit, x)
    magic = f.splat(1.5 * 2.0**form.mantissa, x.type)
    shifted = f.fadd(f.fmul(x, f.splat(1.4426950408889634, x.type)), magic)
    n = f.fsub(shifted, magic)
    r = f.fma(n, f.splat(-form.ln2_high, x.type), x)
    return f.fma(n, f.splat(-form.ln2_low, x.type), r), shifted


def _series(f: Function, r: Value, first: int) -> Value:
    """The sum of r**(k - first) / k! over k >= first, by Horner."""
    terms = _FORMATS[element_of(r.type)].terms
    value = f.splat(1 / factorial(terms), r.type)
    for k in range(terms - 1, first - 1, -1):
        value = f.fma(value, r, f.splat(1 / factorial(k), r.type))
    return value


def _scaled(f: Function, value: Value, shifted: Value) -> Value:
    """value * 2**n, n in the low bits of `shifted`."""
    form = _FORMATS[element_of(value.type)]
    ints = vector(form.integer, lanes_of(value.type))
    count = f"splat ({form.integer} {form.mantissa})" if lanes_of(value.type) > 1 else str(form.mantissa)
    bits = f.emit(f"bitcast {value.type} {shifted.text} to {ints}", ints)
    power = f.emit(f"shl {ints} {bits.text}, {count}", ints)
    raw = f.emit(f"bitcast {value.type} {value.text} to {ints}", ints)
    total = f.emit(f"add {ints} {raw.text}, {power.text}", ints)
    return f.emit(f"bitcast {ints} {total.text} to {value.type}", value.type)


def exp(f: Function, x: Value) -> Value:
    """e**x; infinity a little inside the format's range, and its least normal value instead of zero."""
    r, shifted = _reduced(f, x)
    beyond = f.fcompare("ogt", x, f.splat(_FORMATS[element_of(x.type)].high, x.type))
    return f.select(beyond, f.splat(inf, x.type), _scaled(f, _series(f, r, 0), shifted))


def expm1(f: Function, x: Value) -> Value:
    """e**x - 1 without cancellation near zero."""
    r, shifted = _reduced(f, x)
    one = f.splat(1.0, x.type)
    power = _scaled(f, one, shifted)
    return f.fma(power, f.fmul(r, _series(f, r, 1)), f.fsub(power, one))


def _tanh(f: Function, x: Value) -> Value:
    """tanh |x| = -m / (2 + m) with m = e**(-2|x|) - 1, and the sign of x."""
    size = f.intrinsic("llvm.fabs", x.type, [x])
    m = expm1(f, f.fmul(size, f.splat(-2.0, x.type)))
    value = f.fdiv(f.fsub(f.splat(0.0, x.type), m), f.fadd(f.splat(2.0, x.type), m))
    return f.intrinsic("llvm.copysign", x.type, [value, x])
