"""Which numbers a field of a section takes, as types."""

import typing

import annotated_types
from pydantic import AfterValidator

MOST = 2**31 - 1
"""Arrays count with 32 bits."""
PositiveInt = typing.Annotated[int, annotated_types.Interval(gt=0, le=MOST)]
NonNegativeInt = typing.Annotated[int, annotated_types.Interval(ge=0, le=MOST)]
MOST_TURNS = 64
"""Attempts of a conversation."""
Seed = typing.Annotated[int, annotated_types.Interval(ge=0, lt=2**64)]
"""Each is another run: nothing takes a part of it."""
Tokens = typing.Annotated[int, annotated_types.Interval(gt=0, lt=2**53)]
"""A count that floats hold exactly."""


def _from(low: float, high: float) -> AfterValidator:
    """Numbers that steps can compute with: in float32, 1e-46 would be 0, and 1e39 Inf."""

    def check(value: float) -> float:
        if value != 0 and not low <= abs(value) <= high:
            size = "small" if abs(value) < low else "large"
            raise ValueError(
                f"{value:g} is too {size} for float32: its size must be 0, or from {low:g} to "
                f"{high:g}"
            )
        return value

    return AfterValidator(check)


Float = typing.Annotated[float, _from(1e-37, 1e38)]
Scale = typing.Annotated[float, annotated_types.Gt(0.0), _from(1e-18, 1e18)]
"""A factor of what may be as small or large, too."""
PositiveFloat = typing.Annotated[Float, annotated_types.Gt(0.0)]
NonNegativeFloat = typing.Annotated[Float, annotated_types.Ge(0.0)]
Fraction = typing.Annotated[Float, annotated_types.Interval(ge=0.0, le=1.0)]
Temperature = typing.Annotated[float, annotated_types.Interval(ge=1e-3, le=1e3)]
Decay = typing.Annotated[float, annotated_types.Interval(ge=0.0, le=1.0 - 1e-6)]
