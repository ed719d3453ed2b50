"""The command `captioner info`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from captioner.checkpoint.description import describe
from captioner.cli.options import model_folder
from captioner.formats import escape_controls


@dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Print what a model is: its network, its grid, its words, its scores and its licence."""

    model: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")
    ] = None
    """Model, as in `captioner caption --model`; by default the one that ships with captioner."""

    def run(self) -> int:
        """Print, and return the exit status."""
        folder = model_folder(self.model)
        for name, value in describe(folder):
            sys.stdout.write(f"{name:<10} {escape_controls(value)}\n")
        return 0
