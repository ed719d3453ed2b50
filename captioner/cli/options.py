"""Flags made from dataclasses of settings, for all commands."""

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, make_dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from captioner.bounds import check_bounds
from captioner.checkpoint.names import find_model, is_on_hub, public_name
from captioner.config import DecodingOptions, ModelOptions
from captioner.errors import UsageError, abbreviate
from captioner.field_docs import field_docs
from captioner.formats import escape_controls
from captioner.images.formats import has_picture_suffix
from captioner.records import RecordReader, SplitName

PARSING = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)

DATASET_PARSING = (*PARSING, tyro.conf.OmitSubcommandPrefixes, tyro.conf.CascadeSubcommandArgs)
"""For commands with a data set as subcommand: flags may come before or after it."""

Settings = TypeVar("Settings", bound=DecodingOptions)

SPLIT_OF: dict[str, SplitName] = {"train": "train", "dev": "dev", "val": "dev", "test": "test"}


def arg(metavar: str, default: str = "") -> Any:
    """How a flag is shown: its value, and what applies without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})" if default else "")


def flags(
    kind: type,
    names: Sequence[str] | None = None,
    *,
    override: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> Any:
    """A dataclass whose fields are flags for settings of another one, with their types, help and defaults.

    `names` picks settings, by default all. With `override`, such as "the model's", flags are optional and
    only those that are given count (`given`); it says whose value applies otherwise. `rename` gives some
    settings another flag.
    """
    hints, helps = get_type_hints(kind), field_docs(kind)
    made = []
    for setting in fields(kind):
        if names is not None and setting.name not in names:
            continue
        hint, default = hints[setting.name], setting.default
        is_switch = hint is bool and default is False
        shown = "" if is_switch or default in (None, MISSING, ()) else f"(default: {default})"
        if override is not None:
            shown = ""
            default = default if is_switch else None
            hint = hint if is_switch else hint | None
        options = tyro.conf.arg(
            name=(rename or {}).get(setting.name),
            help=helps.get(setting.name, ""),
            metavar=_metavar(hint),
            help_behavior_hint=shown,
        )
        flag = field() if default is MISSING else field(default=default)
        made.append((setting.name, Annotated[hint, options], flag))
    namespace = {"__doc__": "" if override is None else f"By default {override}."}
    return make_dataclass(f"{kind.__name__}Flags", made, frozen=True, kw_only=True, namespace=namespace)


def given(chosen: Any) -> dict[str, Any]:
    """The values of the flags that were given: those that differ from their defaults."""
    return {f.name: value for f in fields(chosen) if (value := getattr(chosen, f.name)) != f.default}


def _metavar(hint: Any) -> str | None:
    """What stands for a flag's value, such as INT or soft|hard|none; nothing for a switch."""
    if hint is bool:
        return None
    origin, arguments = get_origin(hint), [one for one in get_args(hint) if one is not type(None)]
    if origin is Literal:
        return "|".join(arguments)
    if origin is tuple:
        return "WORD..."
    if arguments:
        return _metavar(arguments[0])
    return {int: "INT", float: "FLOAT", Path: "PATH"}.get(hint, "NAME")


def hide(kind: type, names: Sequence[str]) -> type:
    """A command without some of its flags, to print a shorter help; it cannot parse them."""
    hidden = [
        (
            one.name,
            tyro.conf.Suppress[one.type],  # type: ignore[misc, name-defined]
            field(default=one.default, default_factory=one.default_factory),
        )
        for one in fields(kind)
        if one.name in names
    ]
    namespace = {"__doc__": kind.__doc__}
    return make_dataclass(
        kind.__name__, hidden, bases=(kind,), frozen=True, kw_only=True, namespace=namespace
    )


if TYPE_CHECKING:
    ModelFlags = ModelOptions
else:
    ModelFlags = flags(ModelOptions)


def model_options(chosen: ModelFlags) -> ModelOptions:
    """The options of flags, with the folder of the model. Raises: UsageError, ModelFolderError."""
    options: ModelOptions = checked(ModelOptions, vars(chosen))
    return replace(options, model=model_folder(options.model))


def model_folder(name: Path | None) -> Path:
    """The folder of a model that a flag names; says which commit of the Hub it is.

    Raises: ModelFolderError.
    """
    folder = find_model(name)
    if name is not None and is_on_hub(name):
        sys.stderr.write(f"captioner: the model is {public_name(name, folder)}\n")
    return folder


def checked(kind: type, values: Mapping[str, Any]) -> Any:
    """A dataclass of settings from flags. Raises: UsageError, naming the flag."""
    with naming_flags(values):
        return kind(**values)


def changed(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """A dataclass of settings with those changed that were given as flags. Raises: UsageError."""
    with naming_flags(vars(settings)):
        return replace(settings, **changes)


def check_flags(kind: type, values: Mapping[str, Any]) -> None:
    """Check each flag against the range of its setting. Raises: UsageError, naming the flag."""
    with naming_flags(values):
        check_bounds(kind, dict(values))


@contextmanager
def naming_flags(names: Collection[str]) -> Iterator[None]:
    """Turn a ValueError about settings into a UsageError that has flags in place of the settings' names."""
    try:
        yield
    except ValueError as error:
        pattern = rf"\b(?:{'|'.join(sorted(names, key=len, reverse=True))})\b"
        message = re.sub(pattern, lambda name: f"--{name[0].replace('_', '-')}", str(error))
        raise UsageError(message if names else str(error)) from error


def check_batch_size(batch_size: int | None) -> None:
    """Raises: UsageError."""
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {batch_size}")


def check_words(flag: str, words: Sequence[str]) -> None:
    """A flag that takes several words may swallow pictures named after it. Raises: UsageError."""
    for word in words:
        if (has_picture_suffix(word) or os.sep in word or os.path.isdir(word)) and os.path.exists(word):
            raise UsageError(f"{flag} took {word} for a word; give the pictures before {flag}")


@dataclass(frozen=True)
class BrokenPlugin:
    """An entry point that does not load, and why."""

    name: str
    reason: str


def installed_datasets() -> tuple[dict[str, type[RecordReader]], list[BrokenPlugin]]:
    """The readers of data sets that installed packages register as entry points "captioner.datasets", each a
    mapping of names to readers; a package whose entry point fails is skipped."""
    readers: dict[str, type[RecordReader]] = {}
    broken = []
    for entry_point in entry_points(group="captioner.datasets"):
        try:
            loaded: dict[str, Any] = dict(entry_point.load())
            for name, reader in loaded.items():
                if not hasattr(reader, "__dataclass_fields__") or not hasattr(reader, "read"):
                    raise TypeError(f"{name} is not a dataclass with a method read")
                if name in readers:
                    raise ValueError(f"the data set {name} is already registered")
                readers[name] = reader
        except (Exception, SystemExit) as error:  # noqa: PERF203 (a plugin may raise anything)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            broken.append(BrokenPlugin(entry_point.name, reason))
    return readers, broken


def dataset_subcommands(readers: Mapping[str, type]) -> Any:
    """The type of a field that is one of the readers, chosen by a subcommand."""
    named = tuple(Annotated[reader, tyro.conf.subcommand(name)] for name, reader in readers.items())
    return Union[named] if named else type(None)  # noqa: UP007 (a variable number of them)


def report_broken_plugins(broken: Sequence[BrokenPlugin]) -> None:
    if broken:
        names = abbreviate([f"{plugin.name} ({plugin.reason})" for plugin in broken])
        sys.stderr.write(f"captioner: skipping data sets of broken plugins: {escape_controls(names)}\n")
