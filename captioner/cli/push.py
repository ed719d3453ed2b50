"""The command `captioner push`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from captioner.checkpoint.names import find_model
from captioner.cli.options import arg


@dataclass(frozen=True, kw_only=True)
class PushCommand:
    """Upload a model folder to the Hugging Face Hub, where others load it by --model hf://OWNER/NAME.

    Log in first with: hf auth login. MODEL_CARD.md becomes the repository's card; files that are not the
    model's stay where they are.
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
    """Model folder."""
    repository: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME", help_behavior_hint="")
    ]
    """Repository, created if it does not exist."""
    license: Annotated[str | None, arg("ID", "what the card states")] = None
    """Licence, by the Hub's identifier, such as mit or cc-by-4.0."""
    private: Annotated[bool, arg("")] = False
    """Create a private repository."""

    def run(self) -> int:
        """Upload, and print the address."""
        from captioner.checkpoint.hub import upload_model

        address = upload_model(
            find_model(self.folder), self.repository, license_id=self.license, is_private=self.private
        )
        sys.stdout.write(f"{address}\n")
        return 0
