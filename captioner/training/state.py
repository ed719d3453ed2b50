"""State of a training run on disk, from which it resumes exactly."""

import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from captioner.atomic import replaced_folder
from captioner.errors import CaptionerError, one_line
from captioner.training.recipe import Recipe

_STATE_FILE = "training_state.pt"
_MAY_DIFFER = ("gradient_accumulation_steps", "epochs", "start_from", "weights")


@dataclass
class Progress:
    """Progress of a run. `sums` are over the steps of this epoch; `history` has an entry per epoch."""

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_score: float = -1.0
    epochs_without_improvement: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> "Progress":
        return cls(**json.loads(text))

    def add_step(self, values: dict[str, float]) -> None:
        self.step, self.step_in_epoch = self.step + 1, self.step_in_epoch + 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def end_epoch(self, entry: dict[str, Any]) -> None:
        self.epoch, self.step_in_epoch, self.sums = self.epoch + 1, 0, {}
        self.history.append(entry)

    @property
    def captions_per_s(self) -> float:
        return self.sums["captions"] / self.sums["seconds"]


def save_state(folder: Path, *, recipe: Recipe, state: dict[str, Any]) -> None:
    """Save tensors and plain values, with the recipe they belong to, replacing what was there before.

    Raises:
        CaptionerError: the disk refuses; the old state is kept.
    """
    with replaced_folder(folder) as new:
        torch.save({"recipe": json.dumps(recipe.described()), **state}, new / _STATE_FILE)


def load_matching_state(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Load onto the CPU what `save_state` saved, if it belongs to this recipe.

    `gradient_accumulation_steps` may differ: it changes the memory that is needed and nothing else. So may
    `epochs`, by which a run goes on longer, and the paths of initial weights, which may have been moved.

    Raises:
        CaptionerError: nothing was saved, or it was made by another recipe.
    """
    path = folder / _STATE_FILE
    if not path.is_file():
        raise CaptionerError(f"{path} is missing: nothing was saved yet; start without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        saved = json.loads(state["recipe"])
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError, ValueError) as error:
        raise CaptionerError(
            f"{path} is damaged: {one_line(error)}; start a new run, from the best model so far with: "
            f"--start-from {folder.parent / 'best'}"
        ) from error
    current = recipe.described()
    changed = [
        f"{name} was {saved[section].get(name)!r} and is {value!r}"
        for section in current
        for name, value in current[section].items()
        if saved[section].get(name, value) != value and name not in _MAY_DIFFER
    ]
    if changed:
        raise CaptionerError(
            f"the run in {folder.parent} has a different recipe: {', '.join(changed[:5])}; "
            f"resume it with: train.py --resume {folder.parent}"
        )
    return state


def load_state(folder: Path, *, recipe: Recipe, data: str) -> dict[str, Any]:
    """As `load_matching_state`, and the data must be the same too. Raises: CaptionerError."""
    state = load_matching_state(folder, recipe)
    if state["data"] != data:
        raise CaptionerError(
            f"the run in {folder.parent} was started with other data, other initial weights or "
            "another --cache-limit-gb; resume it with those, or start a new run with another --out"
        )
    return state
