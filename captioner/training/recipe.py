"""Recipe: settings that decide the result of a run, and presets."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from captioner.bounds import Bounded, Count, NonNegative, Positive, Seed, Share, require
from captioner.config import DecoderConfig, DecodingOptions, EncoderConfig, TextEncoderConfig

Value = TypeVar("Value", bound=Any)
MixedPrecision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Bounded):
    """Settings of training. A "step" is one update of the weights.

    The first epochs train the decoder on a frozen CNN. From `finetune_from_epoch` the last stages of the
    CNN are trained too, at their own learning rate. From `self_critical_from_epoch`, captions that the
    model samples are rewarded by their CIDEr-D (Rennie et al. 2017) instead of training on the given ones.
    """

    batch_size: Count = 24
    """Pictures, or sentences, per step, over all processes; each comes with all its captions."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches into which each process splits its share of a step: more take less memory."""
    epochs: Count = 6
    """Passes over the training data. The decoder's learning rate anneals once before self-critical training
    and once during it."""
    learning_rate: Positive = 1.2e-3
    """Peak learning rate of the decoder's one-cycle schedule (AdamW)."""
    finetune_from_epoch: Count | None = None
    """First epoch, counted from 1, that trains the CNN's last stages too; by default the CNN stays frozen."""
    finetune_stages: Count = 2
    """Number of the CNN's last stages to fine-tune."""
    finetune_learning_rate: Positive = 1e-4
    """Peak learning rate of the fine-tuned stages."""
    self_critical_from_epoch: Count | None = None
    """First epoch, counted from 1, of self-critical training: sampled captions are rewarded by their CIDEr-D;
    by default there is none."""
    self_critical_samples: Annotated[int, msgspec.Meta(ge=2)] = 5
    """Captions sampled per picture in self-critical training; the baseline of each is the others' mean."""
    self_critical_learning_rate: Positive = 2e-4
    """Peak learning rate of the decoder in self-critical training."""
    self_critical_object_penalty: NonNegative = 0.0
    """What a sampled caption loses for each object that it names and that is neither annotated in the picture
    nor named by its captions, where 1 is a CIDEr-D of 100; needs data with annotated objects."""
    start_from: Path | None = None
    """Model folder to start from: its weights, vocabulary, encoder and decoder replace the preset's; by
    default the weights are random."""
    augmentation: bool = True
    """Crop, flip and colour the training pictures that are not cached, differently in each epoch."""
    weight_decay: NonNegative = 0.01
    """AdamW's weight decay, for matrices only: not for biases, norms and embeddings."""
    label_smoothing: Share = 0.1
    """Share of the target's probability spread over the vocabulary."""
    attention_penalty: NonNegative = 0.005
    """Weight lambda of the doubly stochastic attention penalty (Xu et al. 2015, eq. 14)."""
    attention_supervision: NonNegative = 1.0
    """Weight lambda_s of supervised attention (Liu et al. 2017), for data with annotated objects."""
    reinforce_weight: NonNegative = 1.0
    """Weight lambda_r of the REINFORCE term of hard attention (Xu et al. 2015, eq. 12)."""
    attention_entropy_weight: NonNegative = 0.01
    """Weight lambda_e of the entropy term, which keeps hard attention exploring."""
    ema_decay: Share = 0.997
    """Decay of the moving average of the weights, which is scored and saved; 0 disables it."""
    gradient_clip: Positive = 1.0
    """Largest norm of the gradient."""
    patience: Count = 3
    """In the last phase: epochs without a better dev score after which training stops."""
    max_dev_pictures: Count | None = None
    """Dev pictures of each data set to caption and score after each epoch; by default all."""
    min_count: Count = 5
    """Times a word must occur in the training captions to enter the vocabulary; not for subwords."""
    mixed_precision: MixedPrecision = "no"
    """Number format of training; bf16 is several times faster if the processor or GPU supports it."""
    keep_case: bool = False
    """Learn and write capitals; by default captions are in lower case. Not for subwords, which keep them."""
    max_caption_words: Count | None = None
    """Words, or subwords, after which captions are cut; by default the 99th percentile of the training
    captions' lengths, but at least 20."""
    seed: Seed = 0
    """Seed of everything random in the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("finetune_from_epoch", "self_critical_from_epoch"):
            first = getattr(self, name)
            require(
                first is None or first <= self.epochs,
                f"{name} must be at most {self.epochs}, the value of epochs",
                first,
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the result of a training run, apart from its data."""

    encoder: EncoderConfig | TextEncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingOptions = field(default_factory=DecodingOptions)

    def __post_init__(self) -> None:
        training = self.training
        if isinstance(self.encoder, TextEncoderConfig):
            first = training.finetune_from_epoch
            rule = "with a text encoder, finetune_from_epoch must be None; leave it out"
            require(first is None, rule, first)
            first = training.self_critical_from_epoch
            rule = "with a text encoder, self_critical_from_epoch must be None; leave it out"
            require(first is None, rule, first)
        is_hard, first = self.decoder.attention == "hard", training.self_critical_from_epoch
        rule = "with hard attention, self_critical_from_epoch must be None; leave it out"
        require(not is_hard or first is None, rule, first)

    def described(self) -> dict[str, dict[str, Any]]:
        """All settings as plain values; paths are shortened, because folders differ between machines."""
        settings = to_plain(self)
        if isinstance(self.encoder, EncoderConfig) and self.encoder.weights is not None:
            settings["encoder"]["weights"] = self.encoder.weights.name
        if self.training.start_from is not None:
            settings["training"]["start_from"] = "/".join(self.training.start_from.parts[-2:])
        return settings

    def overridden(self, overrides: Mapping[str, Any]) -> "Recipe":
        """The recipe with some settings replaced, by section: {"training": {"epochs": 3}}.

        Raises:
            ValueError: a setting does not exist, or its value is not allowed; the message names it.
        """
        sections: dict[str, Any] = dict(vars(self))
        for name, values in overrides.items():
            require(name in sections, f"the sections of a recipe are {', '.join(sections)}", name)
            require(isinstance(values, Mapping), f"{name} must be an object with settings", values)
            known = [field.name for field in fields(sections[name])]
            for setting in values:
                require(setting in known, f"the settings of {name} are {', '.join(known)}", setting)
            sections[name] = from_plain(type(sections[name]), to_plain(sections[name]) | dict(values), name)
        return Recipe(**sections)


def to_plain(value: Any) -> Any:
    """A dataclass as it comes back from JSON: paths become text, tuples lists."""
    return json.loads(json.dumps(msgspec.to_builtins(value, enc_hook=str)))


def from_plain(kind: type, values: Mapping[str, Any], name: str) -> Any:
    """The reverse of `to_plain`. Raises: ValueError, starting with `name`."""
    try:
        return msgspec.convert(values, kind, dec_hook=_to_path)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from None


def with_paths(value: Value, change: Callable[[Path], Path]) -> Value:
    """A dataclass with a function applied to its paths."""
    changes = {
        one.name: change(path) for one in fields(value) if isinstance(path := getattr(value, one.name), Path)
    }
    return replace(value, **changes)


def _to_path(kind: type, value: Any) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"expected a path in quotes, not {value!r}")
    return Path(value)


_FLICKR = Recipe()
_COCO = Recipe(
    training=TrainingConfig(batch_size=64, epochs=10, learning_rate=1.5e-3, max_dev_pictures=5_000)
)
_MULTI30K = Recipe(
    encoder=TextEncoderConfig(),
    decoder=DecoderConfig(embedding_dim=256, hidden_dim=256, attention_dim=128, gate="none", dropout=0.3),
    training=TrainingConfig(
        batch_size=64,
        epochs=8,
        learning_rate=2e-3,
        attention_penalty=0.0,
        ema_decay=0.999,
        max_caption_words=80,
    ),
    decoding=DecodingOptions(max_words=80),
)

PRESETS = {
    "flickr8k": _FLICKR,
    "flickr30k": _FLICKR,
    "coco": _COCO,
    "coco-karpathy": _COCO,
    "custom": _FLICKR,
    "mixture": _FLICKR,
    "multi30k": _MULTI30K,
}
"""Complete recipes by the name of their data set, as in the package datasets. Those of flickr8k and multi30k
were chosen on their dev splits."""
