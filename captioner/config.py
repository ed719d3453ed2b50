"""Settings of a model, its decoding and its device.

Each setting is declared once: its type carries its range (`msgspec.Meta`), the docstring below it is its
help. Files, command lines and Python all go through these dataclasses, so a range is checked wherever a
value comes from. `ModelConfig` and `TranslationConfig` are what a model folder stores as config.json;
`captioner.training.recipe.Recipe` is the counterpart for training.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from captioner.bounds import (
    Bounded,
    Count,
    Depth,
    Dim,
    NonNegative,
    NumWords,
    Positive,
    Seed,
    Share,
    SidePx,
    Stage,
    require,
)
from captioner.errors import reject_string

Device = Literal["auto", "cpu", "cuda", "mps"]
BackendName = Literal["auto", "onnx", "openvino", "torch"]
DecoderKind = Literal["lstm", "transformer"]
Attention = Literal["soft", "hard", "none"]
ScoreName = Literal["additive", "dot", "general", "multihead"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_WIDEST_BEAM = 1_000

FORMAT_VERSION = 1
"""Version of the model folder; it grows when an older captioner could not load a folder."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Bounded):
    """The model to run, and the device to run it on."""

    model: Path | None = None
    """Model: a folder, the name of one that ships, or hf://OWNER/NAME[@REVISION] on the Hugging Face Hub; by
    default the one that ships with captioner."""
    device: Device = "auto"
    """Device to run on; auto takes a GPU if there is one."""
    backend: BackendName = "auto"
    """Software that runs the model: auto takes torch on a GPU; on a CPU OpenVINO, if it is installed and the
    processor computes in bf16, else onnxruntime."""
    threads: Count | None = None
    """CPU threads; by default one per core."""


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(Bounded):
    """Preparation of pictures for the CNN: squashed to a square, scaled to [0, 1], normalised.

    The mean, the standard deviation and the interpolation are those that the CNN was pretrained with.
    """

    size_px: SidePx
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    interpolation: Interpolation


@dataclass(frozen=True, kw_only=True)
class GridConfig(Bounded):
    """Positions of the annotation grid's cells on the CNN's square input.

    The receptive field of cell (row, col) is centred on input pixel
    (offset_px + stride_px * row, offset_px + stride_px * col), counted from the centre of the top
    left pixel. With padded convolutions these centres are not those of an even tiling.
    """

    rows: SidePx
    cols: SidePx
    stride_px: Positive
    offset_px: float
    receptive_field_std_px: Positive | None = None
    """Extent of a cell's effective receptive field, as a standard deviation, measured at the end of training
    by `Encoder.receptive_field_std_px`; None until then."""
    is_supervised: bool = False
    """Whether supervised attention taught each cell to stand for the part of the picture closest to it."""

    @property
    def num_cells(self) -> int:
        return self.rows * self.cols

    @property
    def heatmap_std_px(self) -> float:
        """How far a heatmap spreads a cell's attention around its centre, as a standard deviation.

        That is half a stride if attention was supervised. If it was not, cells beside an object are attended
        to like those on it, because they see it too, and it is as far as a cell sees:
        `receptive_field_std_px`, or before that is measured 1.4 strides, as in EfficientNet-Lite2 at 320 px.
        """
        if self.is_supervised:
            return 0.5 * self.stride_px
        measured = self.receptive_field_std_px
        return 1.4 * self.stride_px if measured is None else measured

    @property
    def geometry(self) -> "GridConfig":
        """What follows from the backbone and the size of its input, without what training adds."""
        return replace(self, receptive_field_std_px=None, is_supervised=False)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Bounded):
    """The CNN that turns a picture into annotation vectors."""

    backbone: str = "tf_efficientnet_lite2"
    """Any timm model by name."""
    weights: Path | None = None
    """File with the backbone's weights in timm's naming; by default timm downloads its own."""
    image_size: Annotated[int, Meta(ge=32, le=4096)] = 260
    """Side of the CNN's square input in pixels; larger gives a finer grid."""
    stage: Stage | None = None
    """Stage of the CNN, as timm's feature extraction counts them, that gives the annotations: -1 is the last
    one, without the layers after it; -2 is the one before, usually with twice as many rows and columns;
    by default all layers but the classifier."""


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(Bounded):
    """The encoder of a sentence to be translated."""

    num_subwords: Dim = 6_000
    """Size of the subword vocabulary that both languages share."""
    embedding_dim: Dim = 256
    """Size of a subword's embedding."""
    hidden_dim: Dim = 256
    """Size of the LSTM's hidden state in each direction."""
    num_layers: Depth = 1
    """Layers of the LSTM."""
    annotation_dim: Dim = 256
    """Size of the annotation vector of each subword."""
    dropout: Share = 0.3
    """Share of units dropped from the embedding and from the LSTM's output."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Bounded):
    """The parts of the decoder and their sizes (Xu et al. 2015, section 3.1.2)."""

    kind: DecoderKind = "lstm"
    """LSTM, or transformer. A transformer's attention is soft and multi-head, set by num_heads and
    num_layers; only the LSTM has the settings from attention to output, embedding_dim, attention_dim and
    rank."""
    attention: Attention = "soft"
    """Attend to a weighted mean of the cells, to one sampled cell, or always to the plain mean."""
    score: ScoreName = "additive"
    """Comparison of a cell with the hidden state."""
    attend: Literal["before_lstm", "after_lstm"] = "before_lstm"
    """Attend by the hidden state before the previous word is read (Xu et al. 2015), or after (Luong et al.
    2015)."""
    gate: Literal["none", "scalar", "vector"] = "vector"
    """Factor of the context: none, one per word (the paper), or one per channel."""
    output: Literal["deep", "plain"] = "deep"
    """Predict the next word from previous word, hidden state and context, or from the hidden state alone."""
    embedding_dim: Dim = 512
    """Size m of a word's embedding E y."""
    hidden_dim: Dim = 512
    """Size n of the LSTM's hidden and cell state, or the transformer's width."""
    attention_dim: Dim = 192
    """Size of the space in which annotations and hidden state are compared, over all heads."""
    rank: Dim | None = None
    """Rank of the LSTM's matrix and of the output layer's, which are then products of two smaller ones; by
    default full."""
    num_heads: Depth = 8
    """Heads of multi-head attention."""
    num_layers: Depth = 3
    """Layers of the transformer."""
    dropout: Share = 0.4
    """Share of units dropped from the word embedding, the context, the hidden state and the readout."""

    def __post_init__(self) -> None:
        super().__post_init__()
        is_transformer, is_multihead = self.kind == "transformer", self.score == "multihead"
        for name, default in LSTM_PARTS.items():
            value = getattr(self, name)
            is_allowed = value == default or not is_transformer
            require(is_allowed, f"{name} must be {default} for a transformer; leave it out", value)
        is_allowed = self.attention != "none" or self.score == "additive"
        require(is_allowed, "score must be additive if attention is none; leave it out", self.score)
        is_allowed = self.attention != "hard" or not is_multihead
        require(is_allowed, "score must be additive, dot or general if attention is hard", self.score)
        is_allowed = self.attend == "before_lstm" or self.output == "deep"
        require(
            is_allowed, "output must be deep, which reads the context, if attend is after_lstm", self.output
        )
        if is_transformer or is_multihead:
            for name in ("hidden_dim", "attention_dim") if is_multihead else ("hidden_dim",):
                value = getattr(self, name)
                require(value % self.num_heads == 0, f"{name} must be a multiple of num_heads", value)


LSTM_PARTS: dict[str, Any] = {
    one.name: one.default
    for one in fields(DecoderConfig)
    if one.name in ("attention", "score", "attend", "gate", "output", "rank")
}
"""Settings that a transformer does not have, and their defaults."""


@dataclass(frozen=True, kw_only=True)
class DecodingOptions(Bounded):
    """Options of generating captions, by beam search or by sampling.

    A model's own options, chosen on its dev split, are `Captioner.config.decoding`; change some of them
    with `dataclasses.replace`.
    """

    beam_size: Annotated[int, Meta(ge=1, le=_WIDEST_BEAM)] = 3
    """Hypotheses kept per picture; 1 is greedy search."""
    length_penalty: Annotated[float, Meta(ge=0, le=10)] = 1.0
    """Exponent p of the ranking log p(y) / length**p; 0 favours short captions."""
    max_words: NumWords = 20
    """Longest caption, in words (for a translator, in subwords)."""
    num_captions: Annotated[int, Meta(ge=1, le=_WIDEST_BEAM)] = 1
    """Captions per picture, the best first."""
    min_words: NumWords = 1
    """Do not end a caption before this many words."""
    no_repeat_ngram: Annotated[int, Meta(ge=0)] = 0
    """Do not repeat a run of this many words within a caption; 0 allows repeats."""
    must_include: tuple[str, ...] = ()
    """Words that every caption must contain."""
    diverse_groups: Count = 1
    """Split the beam into this many groups, each of which avoids the words of the earlier ones."""
    diversity: NonNegative = 0.5
    """With several groups: what a word loses, in nats, each time an earlier group has just chosen it."""
    sample: bool = False
    """Sample captions at random, by their probability, instead of searching for the likeliest."""
    temperature: Annotated[float, Meta(ge=0.01)] = 1.0
    """When sampling: divisor of log-probabilities; below 1, likely words become likelier."""
    top_k: Count | None = None
    """When sampling: draw from the k likeliest words only; by default from all."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """When sampling: draw from the likeliest words that together have this probability."""
    seed: Seed = 0
    """When sampling: seed of the random draws."""

    def __post_init__(self) -> None:
        reject_string(self.must_include, "must_include")
        super().__post_init__()
        is_allowed = self.min_words <= self.max_words
        require(
            is_allowed, f"min_words must be in 1..{self.max_words}, the value of max_words", self.min_words
        )
        for name, default in (("temperature", 1.0), ("top_k", None), ("top_p", 1.0), ("seed", 0)):
            is_allowed = self.sample or getattr(self, name) == default
            require(is_allowed, f"{name} must be {default} without sample; leave it out", getattr(self, name))
        is_allowed = not (self.sample and self.must_include)
        require(is_allowed, "must_include must be empty with sample", self.must_include)
        is_allowed = self.diverse_groups == 1 or not (self.sample or self.must_include)
        rule = "diverse_groups must be 1 with sample or must_include"
        require(is_allowed, rule, self.diverse_groups)
        width = self.search_width * (len(set(self.must_include)) + 1)
        rule = "beam_size and num_captions, in whole diverse_groups"
        if self.must_include:
            rule = "beam_size and num_captions, times the words of must_include and one"
        require(width <= _WIDEST_BEAM, f"{rule}, must be at most {_WIDEST_BEAM}", width)
        is_allowed = self.diverse_groups > 1 or self.diversity == 0.5
        require(is_allowed, "diversity must be 0.5 without diverse_groups; leave it out", self.diversity)

    @property
    def search_width(self) -> int:
        """Hypotheses that a search keeps: `beam_size`, widened to `num_captions` and to whole groups. With
        required words, it keeps as many for each number of them that a hypothesis contains."""
        width = max(self.beam_size, self.num_captions)
        return -(-width // self.diverse_groups) * self.diverse_groups


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Bounded):
    """Everything, besides weights and vocabulary, that is needed to run a captioning model."""

    format_version: int
    backbone: str
    stage: Stage | None = None
    preprocess: PreprocessConfig
    grid: GridConfig
    annotation_dim: Dim
    decoder: DecoderConfig
    decoding: DecodingOptions

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_known_format(self.format_version)


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(Bounded):
    """Everything, besides weights and vocabulary, that is needed to run a translator."""

    format_version: int
    text_encoder: TextEncoderConfig
    decoder: DecoderConfig
    decoding: DecodingOptions

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_known_format(self.format_version)


def _require_known_format(version: int) -> None:
    rule = f"format_version must be {FORMAT_VERSION}; a newer captioner may read it"
    require(version == FORMAT_VERSION, rule, version)
