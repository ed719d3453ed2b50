"""The flags of a training run: what to change in a data set's recipe, and where and how it runs."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from captioner.config import LSTM_PARTS, Attention, DecoderKind, ScoreName, TextEncoderConfig
from captioner.errors import CaptionerError
from captioner.flags import hint
from captioner.recipe import EncoderConfig, Recipe

ARGUMENTS_FILE = "arguments.json"
"""In a run's folder: what the command was started with, by which `--resume FOLDER` goes on."""


class RecipeError(CaptionerError):
    """A recipe that cannot be read, or a setting that is not allowed."""


_RECIPES = "the recipe's"
_PLACES = {
    "backbone": ("encoder", "backbone"),
    "weights": ("encoder", "weights"),
    "image_size": ("encoder", "image_size"),
    "decoder": ("decoder", "kind"),
    "attention": ("decoder", "attention"),
    "score": ("decoder", "score"),
}
"""Part and name of the recipe's settings whose flag is not that of a training setting."""


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What to change in the data set's recipe. `--recipe` can change everything else."""

    recipe: Annotated[Path | None, hint("FILE", "none")] = None
    """JSON with settings to change, as in a run's recipe.json; it may name just a few. Flags go over it."""
    start_from: Annotated[str | None, hint("FOLDER", "none: train from scratch")] = None
    """Model folder to train on from; its vocabulary, encoder and decoder take the place of the preset's."""
    backbone: Annotated[str | None, hint("NAME", _RECIPES)] = None
    """Any timm model."""
    weights: Annotated[str | None, hint("FILE", _RECIPES)] = None
    """The backbone's weights in timm's naming; else timm downloads its own."""
    image_size: Annotated[int | None, hint("PIXELS", _RECIPES)] = None
    """Side of the CNN's square input; larger gives a finer grid."""
    decoder: Annotated[DecoderKind | None, hint("lstm|transformer", _RECIPES)] = None
    """What writes the caption."""
    attention: Annotated[Attention | None, hint("soft|hard|none", _RECIPES)] = None
    """Look at a weighted mean of the cells, at one cell at a time, or always at the plain mean."""
    score: Annotated[ScoreName | None, hint("additive|dot|general|multihead", _RECIPES)] = None
    """How a cell is compared with the hidden state."""
    batch_size: Annotated[int | None, hint("INT", _RECIPES)] = None
    """Pictures, or sentences, in a step, over all processes; each comes with all its captions."""
    accumulate: Annotated[int | None, hint("INT", _RECIPES)] = None
    """Parts in which a process works through its share of a step: more take less memory."""
    epochs: Annotated[int | None, hint("INT", _RECIPES)] = None
    """Passes over the training pictures."""
    learning_rate: Annotated[float | None, hint("FLOAT", _RECIPES)] = None
    """Highest learning rate of the decoder."""
    finetune_from_epoch: Annotated[int | None, hint("INT", _RECIPES)] = None
    """First epoch, counted from 1, in which the CNN's last stages train too."""
    finetune_stages: Annotated[int | None, hint("INT", _RECIPES)] = None
    """How many stages of the CNN are then trained."""
    self_critical_from_epoch: Annotated[int | None, hint("INT", _RECIPES)] = None
    """First epoch, counted from 1, in which sampled captions are rewarded by their CIDEr-D."""
    patience: Annotated[int | None, hint("INT", _RECIPES)] = None
    """Epochs without a better dev score, CIDEr or BLEU, after which training stops."""
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"] | None, hint("no|bf16|fp16", _RECIPES)] = None
    """bf16 is several times faster where the processor or GPU has it."""
    seed: Annotated[int | None, hint("INT", _RECIPES)] = None
    """What all that is random in the run depends on."""

    def applied_to(self, preset: Recipe) -> Recipe:
        """Raises: RecipeError, captioner.model_folder.CheckpointError."""
        changes = self._changes_of_file()
        if self.decoder == "transformer":  # which has none of the LSTM's parts that a preset may have changed
            preset = replace(preset, decoder=replace(preset.decoder, **LSTM_PARTS))
        try:
            base = preset.changed(changes)
            start = self.start_from or base.training.start_from
            if start is not None:
                base = _starting_from(Path(start), preset).changed(changes)
        except ValueError as error:
            raise RecipeError(f"--recipe {self.recipe}: {error}") from error
        given = {name: value for name, value in vars(self).items() if value is not None and name != "recipe"}
        parts: dict[str, dict[str, Any]] = {"encoder": {}, "decoder": {}, "training": {}}
        for flag, value in given.items():
            part, name = _PLACES.get(flag, ("training", flag))
            parts[part][name] = value
        try:
            return base.changed(parts)
        except ValueError as error:
            raise RecipeError(str(error)) from error

    def _changes_of_file(self) -> dict[str, Any]:
        if self.recipe is None:
            return {}
        try:
            changes = json.loads(self.recipe.read_text())
        except OSError as error:
            raise RecipeError(f"cannot read --recipe {self.recipe}: {error.strerror}") from error
        except ValueError as error:
            raise RecipeError(f"--recipe {self.recipe}: {error}") from error
        if not isinstance(changes, dict):
            raise RecipeError(
                f"--recipe {self.recipe}: a recipe is an object with parts, such as "
                '{"training": {"epochs": 3}}'
            )
        return changes


def _starting_from(start: Path, preset: Recipe) -> Recipe:
    """The preset with the encoder and the decoder of the model in a folder. Raises: CheckpointError."""
    from captioner.model_folder import read_config, read_translation_config

    if isinstance(preset.encoder, TextEncoderConfig):
        translator = read_translation_config(start)
        return replace(preset, encoder=translator.text_encoder, decoder=translator.decoder)
    config = read_config(start)
    encoder = EncoderConfig(backbone=config.backbone, image_size=config.preprocess.size_px)
    return replace(preset, encoder=encoder, decoder=config.decoder)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run is kept, and how it goes about its work."""

    out: Path
    """Folder of the run, for example runs/first."""
    resume: bool = False
    """Go on with the run in OUT from where it was last saved."""
    cache_dir: Path = Path("cache")
    """Where the grids of the pictures are kept."""
    cache_limit_gb: Annotated[float | None, hint("FLOAT", "no limit")] = None
    """Largest cache; pictures beyond it are decoded and encoded anew every epoch. 0 keeps none."""
    workers: Annotated[int | None, hint("INT", "one a core, up to 8; 0 if all is cached")] = None
    """Processes that load pictures."""
    save_minutes: float = 10.0
    """How often the run is saved within an epoch."""

    def __post_init__(self) -> None:
        for name in ("cache_limit_gb", "workers", "save_minutes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative, not {value}")
