"""Flags of a training run, and its stored command."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from captioner.bounds import without_repeats
from captioner.checkpoint.folder import read_config, read_translation_config
from captioner.cli.options import arg, check_flags, flags, given, model_folder, naming_flags
from captioner.config import LSTM_PARTS, DecoderConfig, DecodingOptions, EncoderConfig, TextEncoderConfig
from captioner.errors import CaptionerError, UsageError
from captioner.training.options import COMMAND_FILE, RunOptions
from captioner.training.recipe import Recipe, TrainingConfig, from_plain, to_plain, with_paths

Value = TypeVar("Value", bound=Any)

_RECIPES = "as in the recipe"
_TRAINING = (
    *("start_from", "batch_size", "gradient_accumulation_steps", "epochs", "learning_rate"),
    *(
        "finetune_from_epoch",
        "finetune_stages",
        "self_critical_from_epoch",
        "patience",
        "mixed_precision",
        "max_caption_words",
        "min_count",
        "keep_case",
        "seed",
    ),
)
_KEPT_BY_A_RUN = ("cache_dir", "cache_limit_gb", "workers", "save_minutes")

TrainingFlags: Any = flags(TrainingConfig, _TRAINING, override=_RECIPES)
EncoderFlags: Any = flags(EncoderConfig, override=_RECIPES)
DecoderFlags: Any = flags(
    DecoderConfig, ("kind", "attention", "score", "rank"), override=_RECIPES, rename={"kind": "decoder"}
)
_BEFORE = "as when the run was started"
ChangeableFlags: Any = flags(TrainingConfig, ("gradient_accumulation_steps", "epochs"), override=_BEFORE)
ResumedFlags: Any = flags(RunOptions, _KEPT_BY_A_RUN, override=_BEFORE)

if TYPE_CHECKING:
    RunFlags = RunOptions
else:
    RunFlags = flags(RunOptions)


@dataclass(frozen=True, kw_only=True)
class RecipeOverrides:
    """Changes to the data set's recipe."""

    recipe: Annotated[Path | None, arg("FILE")] = None
    """JSON with settings to change, as in a run's recipe.json; it may have just a few. Flags override it."""
    training: TrainingFlags = field(default_factory=TrainingFlags)
    encoder: EncoderFlags = field(default_factory=EncoderFlags)
    decoder: DecoderFlags = field(default_factory=DecoderFlags)

    def applied_to(self, preset: Recipe) -> Recipe:
        """The recipe of a run. Raises: CaptionerError, UsageError."""
        changed = self._read_overrides()
        by_flag = {name: given(getattr(self, name)) for name in ("training", "encoder", "decoder")}
        kinds = {"training": TrainingConfig, "encoder": EncoderConfig, "decoder": DecoderConfig}
        for name, values in by_flag.items():
            check_flags(kinds[name], values)
            if values and isinstance(in_file := changed.get(name, {}), dict):
                changed[name] = in_file | to_plain(values)
        with self._blamed(*by_flag.values()):
            recipe = _changed(preset, changed)
        training, by_flag = recipe.training, by_flag["training"]
        if "finetune_stages" in by_flag and training.finetune_from_epoch is None:
            raise UsageError("--finetune-stages needs --finetune-from-epoch")
        for name in ("min_count", "keep_case"):
            if name in by_flag and training.start_from is not None:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"a run that starts from a model has its vocabulary; leave {flag} out")
        return recipe

    @contextmanager
    def _blamed(self, *by_flag: Mapping[str, Any]) -> Iterator[None]:
        """Turn a ValueError into a UsageError if it is about a flag, else into an error of the recipe's file.

        Raises: CaptionerError, UsageError.
        """
        names = [name for values in by_flag for name in values]
        if self.recipe is None:
            names = [one.name for kind in (TrainingFlags, EncoderFlags, DecoderFlags) for one in fields(kind)]
        try:
            with naming_flags(names):
                yield
        except UsageError as error:
            if self.recipe is None or "--" in str(error):
                raise
            raise CaptionerError(f"--recipe {self.recipe}: {error}") from error

    def _read_overrides(self) -> dict[str, Any]:
        if self.recipe is None:
            return {}
        try:
            overrides = json.loads(
                self.recipe.read_text(encoding="utf-8-sig"), object_pairs_hook=without_repeats
            )
        except OSError as error:
            raise CaptionerError(f"cannot read --recipe {self.recipe}: {error.strerror}") from error
        except ValueError as error:
            raise CaptionerError(f"--recipe {self.recipe}: {error}") from error
        if not isinstance(overrides, dict):
            raise CaptionerError(
                f"--recipe {self.recipe}: a recipe is an object with sections, such as "
                '{"training": {"epochs": 3}}'
            )
        return overrides


def _changed(preset: Recipe, changed: dict[str, Any]) -> Recipe:
    """A preset with settings changed, and the parts of the model that the run starts from.

    Raises: CaptionerError; ValueError, if a setting is not allowed.
    """
    decoder = changed.get("decoder")
    kind = decoder.get("kind") if isinstance(decoder, dict) else None
    if kind == "transformer":  # it has none of the LSTM's parts
        preset = replace(preset, decoder=replace(preset.decoder, **LSTM_PARTS))
    start = preset.overridden({"training": changed.get("training", {})}).training.start_from
    if start is None:
        return preset.overridden(changed)
    start = model_folder(start)
    recipe = _starting_from(start, preset)
    if kind not in (None, recipe.decoder.kind):
        raise CaptionerError(f"{start} has the decoder {recipe.decoder.kind}, not {kind}")
    return recipe.overridden(changed | {"training": changed["training"] | {"start_from": str(start)}})


def _starting_from(start: Path, preset: Recipe) -> Recipe:
    """The preset with encoder, decoder and decoding options of the model in a folder.

    Raises: ModelFolderError.
    """
    if isinstance(preset.encoder, TextEncoderConfig):
        translator = read_translation_config(start)
        return replace(
            preset,
            encoder=translator.text_encoder,
            decoder=translator.decoder,
            decoding=translator.decoding,
        )
    config = read_config(start)
    encoder = EncoderConfig(
        backbone=config.backbone, stage=config.stage, image_size=config.preprocess.size_px
    )
    return replace(preset, encoder=encoder, decoder=config.decoder, decoding=config.decoding)


@dataclass(frozen=True, kw_only=True)
class ResumeFlags:
    """Continue the run in FOLDER from its last save, with the same data and recipe; --epochs makes it
    longer."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
    """Folder of the run."""
    training: ChangeableFlags = field(default_factory=ChangeableFlags)
    machine: ResumedFlags = field(default_factory=ResumedFlags)


def to_stored(
    dataset: str, reader: Any, recipe: Recipe, options: RunOptions, instances: Path | None
) -> dict[str, Any]:
    """The settings that a run stores, with absolute paths, so that it resumes from any folder."""
    kept = to_plain(with_paths(options, Path.absolute))
    return {
        "dataset": dataset,
        "out": str(options.out.absolute()),
        "reader": to_plain(with_paths(reader, Path.absolute)),
        "recipe": {
            name: to_plain(with_paths(section, Path.absolute)) for name, section in vars(recipe).items()
        },
        "options": {name: kept[name] for name in _KEPT_BY_A_RUN},
        "instances": None if instances is None else str(instances.absolute()),
    }


@dataclass(frozen=True)
class StoredCommand:
    """The command of a run in a folder, which may have been moved since."""

    dataset: str
    reader: Any
    recipe: Recipe
    options: RunOptions
    instances: Path | None
    folder: Path
    out: Path

    @classmethod
    def read(cls, flags: ResumeFlags, readers: Mapping[str, type]) -> "StoredCommand":
        """`readers` are the data sets by name. Raises: CaptionerError, UsageError."""
        folder = flags.folder
        try:
            stored = json.loads((folder / COMMAND_FILE).read_text())
            sections = {
                name: from_plain(kind, stored["recipe"][name], name)
                for name, kind in (
                    ("decoder", DecoderConfig),
                    ("training", TrainingConfig),
                    ("decoding", DecodingOptions),
                )
            }
            is_text = "num_subwords" in stored["recipe"]["encoder"]
            encoder_kind = TextEncoderConfig if is_text else EncoderConfig
            sections["encoder"] = from_plain(encoder_kind, stored["recipe"]["encoder"], "encoder")
            options = from_plain(
                RunOptions, {"out": str(folder), "resume": True, **stored["options"]}, "options"
            )
            dataset, out = stored["dataset"], Path(stored["out"])
            instances = None if stored["instances"] is None else Path(stored["instances"])
            reader = from_plain(readers[dataset], stored["reader"], "reader")
        except (OSError, ValueError, LookupError, TypeError) as error:
            reason = "" if isinstance(error, FileNotFoundError) else f" ({error})"
            raise CaptionerError(
                f"{folder} does not contain a run that can be resumed{reason}; if it stopped before its "
                "first step, give its whole command again: features that were computed are kept"
            ) from None
        check_flags(TrainingConfig, given(flags.training))
        check_flags(RunOptions, given(flags.machine))
        with naming_flags([one.name for one in fields(ChangeableFlags)]):
            sections["training"] = replace(sections["training"], **given(flags.training))
        command = cls(dataset, reader, Recipe(**sections), options, instances, folder, out)
        if not options.cache_dir.parent.exists():  # it was moved too; else a cache is made again where it was
            options = replace(options, cache_dir=command._beside(options.cache_dir))
        return replace(command, options=replace(options, **given(flags.machine)))

    def _beside(self, path: Path) -> Path:
        """Where a path is if it was moved together with the run."""
        return Path(os.path.normpath(self.folder.absolute() / os.path.relpath(path, self.out)))

    def relocate(self, path: Path) -> Path:
        """A path, adapted if what it names was moved together with the run."""
        beside = self._beside(path)
        return beside if not path.exists() and beside.exists() else path

    def relocated(self, value: Value) -> Value:
        """Settings whose paths are adapted if they were moved together with the run."""
        texts = {  # absolute paths in templates such as those of Coco
            one.name: str(self.relocate(Path(text)))
            for one in fields(value)
            if isinstance(text := getattr(value, one.name), str) and os.path.isabs(text)
        }
        return with_paths(replace(value, **texts), self.relocate)
