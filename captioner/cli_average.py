"""The command `captioner average`: one model from several."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from captioner.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class AverageCommand:
    """Average the weights of models that come from one another, into a new model folder.

    The mean of a model before and one after self-critical training can be better than either. Vocabulary and
    decoding are those of the last. Score the result with `captioner evaluate`.
    """

    models: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER...", help_behavior_hint="")
    ]
    """Model folders, two or more."""
    shares: tuple[float, ...]
    """The share of each, in the same order; they sum to 1."""
    out: Path
    """The new folder."""


def run_average(command: AverageCommand) -> None:
    """Average as the command says."""
    if command.out.exists():
        raise UsageError(f"--out {command.out} is there already; name a new folder")
    try:
        from captioner.averaging import average_models
        from captioner.checkpoint import load_checkpoint, save_checkpoint
    except ModuleNotFoundError as error:
        raise UsageError(
            f"averaging needs {error.name}; install it with: pip install 'captioner[torch]'"
        ) from error

    models = [load_checkpoint(folder) for folder in command.models]
    save_checkpoint(command.out, average_models(models, command.shares))
    sys.stdout.write(f"{command.out}\n")
