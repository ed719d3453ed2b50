"""Ranges and choices of settings: stated in their types, checked wherever a value comes from."""

import math
from collections import Counter
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from msgspec import Meta

Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Count = Annotated[int, Meta(ge=1)]
Dim = Annotated[int, Meta(ge=1, le=65_536)]
Depth = Annotated[int, Meta(ge=1, le=256)]
Stage = Annotated[int, Meta(le=-1)]
SidePx = Annotated[int, Meta(ge=1, le=4096)]
MOST_WORDS = 1_000
NumWords = Annotated[int, Meta(ge=1, le=MOST_WORDS)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]


def require(is_met: bool, rule: str, given: object) -> None:
    """Raises: ValueError, with the rule and what was given, if the rule is not met.

    What to do may follow the rule after a semicolon.
    """
    if not is_met:
        rule, semicolon, advice = rule.partition("; ")
        raise ValueError(f"{rule}, not {given!r}{semicolon}{advice}")


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, as a hook of `json.loads`, which would keep the last of repeated settings.

    Raises: ValueError, naming one.
    """
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is there twice")
    return dict(pairs)


def check_bounds(kind: type, values: dict[str, Any]) -> None:
    """Check settings of a dataclass, by name, against the ranges and choices that its types state; None
    passes.

    Raises:
        ValueError: naming the first setting outside its range.
    """
    for name, choices in choices_of(kind).items():
        given = values.get(name)
        require(given is None or given in choices, f"{name} must be one of {', '.join(choices)}", given)
    for name, bounds in bounds_of(kind).items():
        given = values.get(name)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None:
                require(_is_within(value, bounds), f"{name} must be {describe_bounds(bounds)}", given)


@cache
def choices_of(kind: type) -> dict[str, tuple[str, ...]]:
    """The values of each setting of a dataclass that has a few, a Literal."""
    hints = get_type_hints(kind)
    return {field.name: found for field in fields(kind) if (found := _choices_in(hints[field.name]))}


def _choices_in(hint: Any) -> tuple[str, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((found for part in get_args(hint) if (found := _choices_in(part))), ())


@cache
def bounds_of(kind: type) -> dict[str, Meta]:
    """The range of each setting of a dataclass that has one."""
    hints = get_type_hints(kind, include_extras=True)
    found = {field.name: _bounds_in(hints[field.name]) for field in fields(kind)}
    return {name: bounds for name, bounds in found.items() if bounds is not None}


def _bounds_in(hint: Any) -> Meta | None:
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        if isinstance(part, Meta):
            return part
        inner = None if isinstance(part, str | int | float) or part is None else _bounds_in(part)
        if inner is not None:
            return inner
    return None


def _is_within(value: float, bounds: Meta) -> bool:
    return (
        math.isfinite(value)
        and (bounds.ge is None or value >= bounds.ge)
        and (bounds.gt is None or value > bounds.gt)
        and (bounds.le is None or value <= bounds.le)
        and (bounds.lt is None or value < bounds.lt)
    )


def describe_bounds(bounds: Meta) -> str:
    """A range in words, such as "in 1..1000" or "above 0"."""
    low, high = (
        (bounds.gt if bounds.ge is None else bounds.ge),
        (bounds.lt if bounds.le is None else bounds.le),
    )
    if low is not None and high is not None:
        if isinstance(low, int) and bounds.ge is not None and bounds.le is not None:
            return f"in {low}..{high}"
        return f"in {'(' if bounds.ge is None else '['}{low}, {high}{')' if bounds.le is None else ']'}"
    if low is not None:
        return f"above {low}" if bounds.ge is None else f"at least {low}"
    return f"below {high}" if bounds.le is None else f"at most {high}"


class Bounded:
    """Base of dataclasses whose values are checked against the ranges in their types when they are made."""

    def __post_init__(self) -> None:
        check_bounds(type(self), vars(self))
