"""How dataclasses become flags, the same for every command (tyro)."""

from collections.abc import Mapping
from typing import Annotated, Any, Union

import tyro

PARSING = (tyro.conf.FlagCreatePairsOff,)

DATASET_PARSING = (
    *PARSING,
    tyro.conf.OmitArgPrefixes,
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.CascadeSubcommandArgs,
)
"""For commands with a data set as subcommand: flags may stand before it or after."""


def hint(metavar: str, default: str) -> Any:
    """How an option that may be left out is shown: its value, and what it is without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def one_of(readers: Mapping[str, type]) -> Any:
    """The type of a field that is one of the readers, named by a subcommand; None where there are none."""
    named = tuple(Annotated[reader, tyro.conf.subcommand(name)] for name, reader in readers.items())
    return Union[named] if named else type(None)  # noqa: UP007 (of as many as there are)
