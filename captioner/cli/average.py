"""The command `captioner average`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from captioner.cli.options import arg, model_folder
from captioner.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class AverageCommand:
    """Average the weights of models that were trained from one another, into a new model folder.

    The mean of a model before and after self-critical training can be better than either. Vocabulary and
    decoding are those of the last. Score the result with `captioner evaluate`.
    """

    models: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER...", help_behavior_hint="")
    ]
    """Two or more models: folders, or hf://OWNER/NAME[@REVISION] on the Hugging Face Hub."""
    shares: Annotated[tuple[float, ...], arg("FLOAT...")]
    """The share of each, in the same order; they sum to 1."""
    out: Annotated[Path, arg("FOLDER")]
    """The new folder."""

    def run(self) -> int:
        """Average and save."""
        if self.out.exists():
            raise UsageError(f"--out {self.out} exists; choose a new folder")
        from captioner.checkpoint.averaging import average_models
        from captioner.checkpoint.weights import load_checkpoint, save_checkpoint

        models = [load_checkpoint(model_folder(name)) for name in self.models]
        save_checkpoint(self.out, average_models(models, self.shares))
        sys.stdout.write(f"{self.out}\n")
        return 0
