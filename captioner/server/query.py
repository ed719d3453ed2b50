"""Decoding options as parameters of a query."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_type_hints

from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field, create_model

from captioner.bounds import bounds_of
from captioner.config import DecodingOptions
from captioner.field_docs import field_docs
from captioner.server.guard import RefusedError

# A search of a thousand hypotheses, or for a thousand words, would keep everyone else waiting.
MOST_HYPOTHESES, _MOST_WORDS, _MOST_REQUIRED = 32, 100, 4
_BOUNDS = {
    "beam_size": {"le": MOST_HYPOTHESES},
    "num_captions": {"le": MOST_HYPOTHESES},
    "max_words": {"le": _MOST_WORDS},
}


def make_query_model() -> type[BaseModel]:
    """Decoding options as parameters of a query: all may be left out, others are refused."""
    hints, docs, bounds = (
        get_type_hints(DecodingOptions),
        field_docs(DecodingOptions),
        bounds_of(DecodingOptions),
    )
    made: dict[str, Any] = {}
    for setting in fields(DecodingOptions):
        hint = hints[setting.name]
        hint = list[str] if setting.name == "must_include" else hint
        made[setting.name] = (
            hint | None,
            Field(
                None,
                description=docs.get(setting.name),
                **_range_of(bounds.get(setting.name)) | _BOUNDS.get(setting.name, {}),
            ),
        )
    made["with_attention"] = (
        bool,
        Field(default=True, description="Add each word's attention over the grid."),
    )
    return create_model("DecodingQuery", __config__=ConfigDict(extra="forbid"), **made)


def _range_of(bounds: Meta | None) -> dict[str, Any]:
    stated = {} if bounds is None else {name: getattr(bounds, name) for name in ("ge", "gt", "le", "lt")}
    return {name: value for name, value in stated.items() if value is not None}


def changed_by(own: DecodingOptions, asked: Mapping[str, Any]) -> DecodingOptions:
    """The model's options with those changed that a request names. Raises: RefusedError."""
    if "must_include" in asked:
        asked = {**asked, "must_include": tuple(asked["must_include"])}
    try:
        options = replace(own, **asked)
    except ValueError as error:
        raise RefusedError(400, str(error)) from None
    if options.search_width > MOST_HYPOTHESES:
        raise RefusedError(
            400,
            f"the search would keep {options.search_width} hypotheses, and may keep {MOST_HYPOTHESES} here; "
            "lower beam_size, num_captions or diverse_groups",
        )
    if len(options.must_include) > _MOST_REQUIRED:  # each has as many hypotheses of its own
        raise RefusedError(400, f"must_include may have at most {_MOST_REQUIRED} words here")
    return options
