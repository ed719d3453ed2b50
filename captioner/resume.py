"""What a training run keeps on disk to go on exactly where it was."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from captioner.data import Split
from captioner.encoder import Encoder
from captioner.errors import CaptionerError
from captioner.features import weights_digest
from captioner.model_folder import replaced_folder
from captioner.recipe import EncoderConfig, Recipe
from captioner.vocabulary import Vocabulary

_STATE_FILE = "training_state.pt"


class ResumeError(CaptionerError):
    """A run that cannot be gone on with; the message says why."""


@dataclass
class Progress:
    """How far a run is. `sums` are over the steps of this epoch, `history` has an entry a finished epoch."""

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_score: float = -1.0
    epochs_without_gain: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> "Progress":
        """That of an older run too, which calls its best score `best_cider`."""
        values = json.loads(text)
        if "best_cider" in values:
            values["best_score"] = values.pop("best_cider")
        return cls(**values)

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


def data_digest(train: Split, vocabulary: Vocabulary, encoder: Encoder) -> str:
    """What changes when the training pictures, their captions, the vocabulary, what is cached or the CNN
    that the run starts with does."""
    digest = hashlib.sha256(vocabulary.to_json())
    digest.update(weights_digest(encoder).encode())
    digest.update(str(len(train.grids)).encode())
    for record in train.records:
        digest.update(repr((record.image_id, record.captions)).encode(errors="surrogateescape"))
    return digest.hexdigest()


def save_state(folder: Path, *, recipe: Recipe, state: dict[str, Any]) -> None:
    """Save tensors and plain values, with the recipe they belong to, in place of what stood there.

    Raises:
        captioner.model_folder.CheckpointError: the disk refuses; the old state is kept.
    """
    with replaced_folder(folder) as aside:
        torch.save({"recipe": json.dumps(recipe.described()), **state}, aside / _STATE_FILE)


def require_same_recipe(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Load what `save_state` saved, onto the CPU, if it belongs to this recipe.

    `accumulate` may differ: it changes the memory that is needed and nothing else.

    Raises:
        ResumeError: there is nothing, or it was made by another recipe.
    """
    path = folder / _STATE_FILE
    if not path.is_file():
        raise ResumeError(f"{path} is not there: nothing was saved yet; start without --resume")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    saved = json.loads(state["recipe"])
    if ("backbone" in saved["encoder"]) != isinstance(recipe.encoder, EncoderConfig):
        raise ResumeError(
            f"the run in {folder.parent} is of another data set; go on with it by: train.py --resume "
            f"{folder.parent}"
        )
    try:  # a setting that came later has its default, by which a run goes on as it did
        defaults = Recipe(encoder=type(recipe.encoder)())
        before = defaults.changed(saved).described()
    except ValueError as error:
        raise ResumeError(
            f"the run in {folder.parent} was begun by another version of captioner ({error}); start another"
        ) from error
    now = recipe.described()
    changed = [
        f"{name} was {before[part][name]!r} and is {value!r}"
        for part in now
        for name, value in now[part].items()
        if before[part][name] != value and name != "accumulate"
    ]
    if changed:
        raise ResumeError(
            f"the run in {folder.parent} has another recipe: {', '.join(changed)}; "
            "resume it with the flags it was started with"
        )
    return state


def load_state(folder: Path, *, recipe: Recipe, data: str) -> dict[str, Any]:
    """As `require_same_recipe`, and the training data must be the same too. Raises: ResumeError."""
    state = require_same_recipe(folder, recipe)
    if state["data"] != data:
        raise ResumeError(
            f"the run in {folder.parent} was started with other training data, other first weights or "
            "another --cache-limit-gb; resume it with those, or start another with --out"
        )
    return state
