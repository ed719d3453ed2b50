"""How a model is trained: everything that decides what a run gives, its defaults, and a preset a data set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from captioner.config import MAX_IMAGE_SIZE_PX, DecoderConfig, DecodingConfig, TextEncoderConfig, require


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained. A "step" is one update of the weights.

    The first epochs train the decoder on a frozen CNN. With `finetune_from_epoch` the last stages of the
    CNN join in, at their own learning rate. From `self_critical_from_epoch` on, captions that the model
    samples are rewarded by their CIDEr-D (Rennie et al. 2017) in place of training on the given ones.
    """

    batch_size: int = 24
    """Pictures in a step, over all processes; each comes with all its captions."""
    accumulate: int = 1
    """Parts in which each process works through its share of a step: more take less memory."""
    epochs: int = 6
    """Passes over the training pictures; the learning rate anneals over those of each phase."""
    learning_rate: float = 1.2e-3
    """Highest learning rate of the decoder's one-cycle schedule (AdamW)."""
    finetune_from_epoch: int | None = None
    """First epoch, counted from 1, in which the CNN's last stages train too; None leaves it frozen."""
    finetune_stages: int = 2
    """How many of the CNN's stages, counted from its end, are then trained."""
    finetune_learning_rate: float = 1e-4
    """Highest learning rate of these stages."""
    self_critical_from_epoch: int | None = None
    """First epoch, counted from 1, of self-critical training; None is never."""
    self_critical_samples: int = 5
    """Captions then sampled for each picture; each one's baseline is the mean of the others."""
    self_critical_learning_rate: float = 2e-4
    """Highest learning rate of the decoder then."""
    self_critical_bleu_weight: float = 0.0
    """Weight of a caption's BLEU-4 (0..1) that is added to its CIDEr-D (0..10)."""
    start_from: str | None = None
    """Model folder whose weights, vocabulary, encoder and decoder the run starts with."""
    augmentation: bool = True
    """Flip, crop and colour the training pictures that are not cached, anew every time."""
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    """Share of the target's probability spread over the vocabulary."""
    attention_penalty: float = 0.005
    """Weight lambda of the doubly stochastic attention penalty (Xu et al. 2015, eq. 14)."""
    reinforce_weight: float = 1.0
    """Weight lambda_r of what hard attention learns by REINFORCE (Xu et al. 2015, eq. 12)."""
    attention_entropy_weight: float = 0.01
    """Weight lambda_e that keeps hard attention from settling too early."""
    ema_decay: float = 0.997
    """Decay of the moving average of the weights, which is what gets scored and saved; 0 is off."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    patience: int = 3
    """Epochs without a better dev score, CIDEr or BLEU, after which training stops; each new phase begins the
    count anew."""
    max_dev_pictures: int | None = None
    """Pictures of dev that are captioned and scored after each epoch; None is all."""
    min_count: int = 5
    """Times a word must occur in the training captions to enter the vocabulary; not for subwords."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """bf16 is several times faster where the processor or GPU has it."""
    max_caption_words: int = 20
    """Words, or subwords, after which a training caption is cut."""
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("batch_size", "accumulate", "epochs", "patience", "min_count", "max_caption_words")
        for name in (*counts, "finetune_stages"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1", value)
        for name in ("finetune_from_epoch", "self_critical_from_epoch"):
            first = getattr(self, name)
            require(first is None or 1 <= first <= self.epochs, f"{name} must be within epochs", first)
        samples = self.self_critical_samples
        require(samples >= 2, "self_critical_samples must be at least 2", samples)
        require(self.seed < 2**32, "seed must be below 2**32", self.seed)
        max_dev = self.max_dev_pictures
        require(max_dev is None or max_dev >= 1, "max_dev_pictures must be at least 1", max_dev)
        rates = ("learning_rate", "finetune_learning_rate", "self_critical_learning_rate")
        for name in (*rates, "gradient_clip"):
            value = getattr(self, name)
            require(value > 0, f"{name} must be above 0", value)
        for name in ("label_smoothing", "ema_decay"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must be in [0, 1)", value)
        weights = ("reinforce_weight", "attention_entropy_weight", "self_critical_bleu_weight")
        for name in ("weight_decay", "attention_penalty", *weights, "seed"):
            value = getattr(self, name)
            require(value >= 0, f"{name} must not be negative", value)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Which CNN turns a picture into annotation vectors."""

    backbone: str = "tf_efficientnet_lite2"
    """Any timm model by name."""
    weights: str | None = None
    """File with the CNN's weights in timm's naming; without it timm downloads its own."""
    image_size: int = 260
    """Side of the CNN's square input in pixels; larger gives a finer grid."""

    def __post_init__(self) -> None:
        require(32 <= self.image_size <= MAX_IMAGE_SIZE_PX, "image size must be in 32..4096", self.image_size)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run gives, apart from its data."""

    encoder: EncoderConfig | TextEncoderConfig = field(default_factory=EncoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        if isinstance(self.encoder, TextEncoderConfig):
            first = self.training.finetune_from_epoch
            require(
                first is None, "what reads text trains from the start; leave finetune_from_epoch out", first
            )
            first = self.training.self_critical_from_epoch
            require(
                first is None,
                "there is no self-critical training of translators; leave self_critical_from_epoch out",
                first,
            )
        is_hard, first = self.decoder.attention == "hard", self.training.self_critical_from_epoch
        require(
            not is_hard or first is None,
            "there is no self-critical training of hard attention; leave self_critical_from_epoch out",
            first,
        )

    def described(self) -> dict[str, dict[str, Any]]:
        """All settings as plain values; of files and folders the name, for their place is a machine's own."""
        settings = asdict(self)
        if isinstance(self.encoder, EncoderConfig) and self.encoder.weights is not None:
            settings["encoder"]["weights"] = Path(self.encoder.weights).name
        if self.training.start_from is not None:
            settings["training"]["start_from"] = "/".join(Path(self.training.start_from).parts[-2:])
        return settings

    def changed(self, changes: Mapping[str, Any]) -> "Recipe":
        """The recipe with some settings replaced, named by part: {"training": {"epochs": 3}}.

        Raises:
            ValueError: a setting is not there, or its value is not allowed; the message names it.
        """
        settings = asdict(self)
        for part, values in changes.items():
            require(part in settings, f"a recipe has the parts {', '.join(settings)}", part)
            require(isinstance(values, Mapping), f"{part} must be an object with settings", values)
            for name, value in values.items():
                require(name in settings[part], f"{part} has the settings {', '.join(settings[part])}", name)
                settings[part][name] = value
        parts: dict[str, Any] = {}
        for name, part in vars(self).items():
            try:
                parts[name] = msgspec.convert(settings[name], type(part))
            except msgspec.ValidationError as error:  # noqa: PERF203 (four times)
                raise ValueError(f"{name}: {error}") from None
        return Recipe(**parts)


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
    decoding=DecodingConfig(max_words=80),
)

PRESETS = {
    "flickr8k": _FLICKR,
    "flickr30k": _FLICKR,
    "coco": _COCO,
    "coco-karpathy": _COCO,
    "own": _FLICKR,
    "multi30k": _MULTI30K,
}
"""Complete recipes by the name of their data set, as in the package datasets. Those of flickr8k and multi30k
were chosen on their dev splits."""
