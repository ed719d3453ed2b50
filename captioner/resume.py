"""What a training run keeps on disk to go on exactly where it was."""

import json
from pathlib import Path
from typing import Any

import torch

from captioner.checkpoint import recover_folder, replaced_folder
from captioner.config import Recipe
from captioner.errors import CaptionerError

_STATE_FILE = "training_state.pt"


class ResumeError(CaptionerError):
    """A run that cannot be gone on with; the message says why."""


def save_state(folder: Path, *, recipe: Recipe, state: dict[str, Any]) -> None:
    """Save tensors and plain values, with the recipe they belong to, in place of what stood there.

    Raises:
        captioner.checkpoint.CheckpointError: the disk refuses; the old state is kept.
    """
    with replaced_folder(folder) as aside:
        torch.save({"recipe": json.dumps(recipe.described()), **state}, aside / _STATE_FILE)


def load_state(folder: Path, *, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Load what `save_state` saved.

    Raises:
        ResumeError: there is nothing, or it was made by another recipe.
    """
    recover_folder(folder)
    path = folder / _STATE_FILE
    if not path.is_file():
        raise ResumeError(f"{path} is not there: no epoch was finished; start without --resume")
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    before, now = json.loads(state["recipe"]), recipe.described()
    changed = [
        f"{name} was {before[part].get(name)!r} and is {value!r}"
        for part in now
        for name, value in now[part].items()
        if before[part].get(name) != value
    ]
    if changed:
        raise ResumeError(
            f"the run in {folder.parent} has another recipe: {', '.join(changed)}; "
            "resume it with the flags it was started with"
        )
    return state
