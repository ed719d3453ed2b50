"""What can be set, its default and its allowed range.

`ModelConfig`, or of a translator `TranslationConfig`, is what a checkpoint folder needs to be loaded (its
config.json); what a training run needs to be repeated is `captioner.recipe.Recipe`. All are plain frozen
dataclasses, read and written as JSON by msgspec, and every range is checked where the value is made, whether
that is by hand, by a command line or by a file.
"""

from dataclasses import dataclass
from typing import Any, Literal

Device = Literal["auto", "cpu", "cuda", "mps"]
BackendName = Literal["auto", "onnx", "torch"]
OutputFormat = Literal["text", "jsonl", "csv"]
Engine = Literal["local", "ray"]
OverlayStyle = Literal["smooth", "cells"]
FigureFormat = Literal["png", "svg", "pdf"]
DecoderKind = Literal["lstm", "transformer"]
Attention = Literal["soft", "hard", "none"]
ScoreName = Literal["additive", "dot", "general", "multihead"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

FORMAT_VERSION = 3
"""Version of the checkpoint folder. It grows when an older captioner could not load the folder; folders of
older versions can be loaded."""

MAX_IMAGE_SIZE_PX = 4096
MAX_DIM = 65_536
MAX_HEADS = 256
MAX_WORDS_LIMIT = 1_000
MAX_FIGURE_PX = 40_000
MAX_CAPTIONS = 1_000


def require(is_met: bool, rule: str, given: object) -> None:
    """Raises: ValueError, with the rule and what was given, where it is not met."""
    if not is_met:
        raise ValueError(f"{rule}, not {given!r}")


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """How a picture becomes the CNN's input: squashed to a square, scaled to [0, 1], normalised.

    The CNN's own training fixes the mean, the deviation and the interpolation.
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation

    def __post_init__(self) -> None:
        require(1 <= self.size_px <= MAX_IMAGE_SIZE_PX, "size_px must be in 1..4096", self.size_px)
        require(min(self.std) > 0, "std must be above 0", self.std)


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """Where the cells of the annotation grid lie on the CNN's square input.

    The field of view of cell (row, col) is centred on input pixel
    (offset_px + stride_px * row, offset_px + stride_px * col), counted from the centre of the top
    left pixel. With padded convolutions these centres are not those of an even tiling.
    """

    rows: int
    cols: int
    stride_px: float
    offset_px: float
    field_px: float | None = None
    """How far around its centre a cell sees: the deviation of its effective receptive field, measured by
    `Encoder.field_px`. Unknown in folders of formats 1 and 2."""

    def __post_init__(self) -> None:
        require(1 <= self.rows <= MAX_IMAGE_SIZE_PX, "rows must be in 1..4096", self.rows)
        require(1 <= self.cols <= MAX_IMAGE_SIZE_PX, "cols must be in 1..4096", self.cols)
        require(self.stride_px > 0, "stride_px must be above 0", self.stride_px)
        require(self.field_px is None or self.field_px > 0, "field_px must be above 0", self.field_px)

    @property
    def num_cells(self) -> int:
        return self.rows * self.cols

    @property
    def field_or_default_px(self) -> float:
        """`field_px`, or where it is unknown 1.4 strides, as with EfficientNet-Lite2 at 320 pixels."""
        return 1.4 * self.stride_px if self.field_px is None else self.field_px


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """What reads a sentence that is to be translated."""

    num_subwords: int = 6_000
    """Parts of words that both languages share."""
    embedding_dim: int = 256
    """Size of a subword's embedding."""
    hidden_dim: int = 256
    """Size of the LSTM's hidden state in each direction."""
    num_layers: int = 1
    """Layers of the LSTM."""
    annotation_dim: int = 256
    """Size of the annotation vector of each subword."""
    dropout: float = 0.3
    """Share of units dropped from the embedding and from what the LSTM gives."""

    def __post_init__(self) -> None:
        for name in ("num_subwords", "embedding_dim", "hidden_dim", "annotation_dim"):
            value = getattr(self, name)
            require(1 <= value <= MAX_DIM, f"{name} must be in 1..{MAX_DIM}", value)
        require(1 <= self.num_layers <= MAX_HEADS, f"num_layers must be in 1..{MAX_HEADS}", self.num_layers)
        require(0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What the decoder is made of, and the sizes (Xu et al. 2015, section 3.1.2)."""

    kind: DecoderKind = "lstm"
    """The transformer has soft multi-head attention, at num_heads and num_layers; the next five settings,
    embedding_dim and attention_dim are the LSTM's."""
    attention: Attention = "soft"
    """Look at a weighted mean of the cells, at one cell drawn at random, or always at the plain mean."""
    score: ScoreName = "additive"
    """How a cell is compared with the hidden state."""
    look: Literal["before", "after"] = "before"
    """When the LSTM looks: before it reads the previous word (the paper), or after (Luong et al. 2015)."""
    gate: Literal["none", "scalar", "vector"] = "vector"
    """What the context is multiplied by: nothing, one number a word (the paper), or one a channel."""
    output: Literal["deep", "plain"] = "deep"
    """What the next word is read from: previous word, hidden state and context, or hidden state alone."""
    embedding_dim: int = 512
    """Size m of a word's embedding E y."""
    hidden_dim: int = 512
    """Size n of the LSTM's hidden and cell state, or the transformer's width."""
    attention_dim: int = 192
    """Size of the space in which annotations and hidden state are compared, of all heads together."""
    num_heads: int = 8
    """Heads of multi-head attention."""
    num_layers: int = 3
    """Layers of the transformer."""
    dropout: float = 0.4
    """Share of units dropped from the word embedding, the context, the hidden state and the readout."""

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "hidden_dim", "attention_dim"):
            value = getattr(self, name)
            require(1 <= value <= MAX_DIM, f"{name} must be in 1..{MAX_DIM}", value)
        for name in ("num_heads", "num_layers"):
            value = getattr(self, name)
            require(1 <= value <= MAX_HEADS, f"{name} must be in 1..{MAX_HEADS}", value)
        self._require_parts_that_fit()
        require(0 <= self.dropout < 1, "dropout must be in [0, 1)", self.dropout)

    def _require_parts_that_fit(self) -> None:
        """Refuse what could only be ignored, or cannot be computed."""
        is_transformer, is_multihead = self.kind == "transformer", self.score == "multihead"
        for name, default in LSTM_PARTS.items():
            value = getattr(self, name)
            fits = value == default or not is_transformer
            require(fits, f"{name} is a part of the lstm; leave it out for a transformer", value)
        fits = self.attention != "none" or self.score == "additive"
        require(fits, "no attention needs no score; leave it out", self.score)
        fits = self.attention != "hard" or not is_multihead
        require(fits, "hard attention has one head; score", self.score)
        fits = self.look == "before" or self.output == "deep"
        require(
            fits,
            "looking after reading needs the deep output, which reads what was seen; output",
            self.output,
        )
        if is_transformer or is_multihead:
            for name in ("hidden_dim", "attention_dim") if is_multihead else ("hidden_dim",):
                value = getattr(self, name)
                require(value % self.num_heads == 0, f"{name} must be a multiple of num_heads", value)


LSTM_PARTS: dict[str, Any] = {
    "attention": "soft",
    "score": "additive",
    "look": "before",
    "gate": "vector",
    "output": "deep",
}
"""The defaults of what a transformer does not have."""


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How the search writes a caption."""

    beam_size: int = 3
    """Hypotheses kept for each picture; 1 is greedy."""
    length_penalty: float = 1.0
    """Exponent p of the ranking log p(y) / length**p; 0 favours short captions."""
    max_words: int = 20
    """Words, or a translator's subwords, after which a caption is cut."""
    min_words: int = 1
    """Words before which no caption ends."""
    no_repeat_ngram: int = 0
    """No run of so many words comes twice in a caption; 0 allows all."""
    diverse_groups: int = 1
    """Groups that the beam is divided into, each of which avoids the words of those before it."""
    diversity: float = 0.5
    """With several groups: what a word loses, in nats, for each earlier group that has just chosen it."""

    def __post_init__(self) -> None:
        require(1 <= self.beam_size <= 1000, "beam size must be in 1..1000", self.beam_size)
        require(0 <= self.length_penalty <= 10, "length penalty must be in 0..10", self.length_penalty)
        require(
            1 <= self.max_words <= MAX_WORDS_LIMIT,
            f"max words must be in 1..{MAX_WORDS_LIMIT}",
            self.max_words,
        )
        fits = 1 <= self.min_words <= self.max_words
        require(fits, f"min words must be in 1..{self.max_words}, the largest number", self.min_words)
        require(self.no_repeat_ngram >= 0, "no-repeat n-gram must not be negative", self.no_repeat_ngram)
        fits = self.diverse_groups >= 1 and self.beam_size % self.diverse_groups == 0
        require(fits, f"diverse groups must divide the beam of {self.beam_size}", self.diverse_groups)
        require(self.diversity >= 0, "diversity must not be negative", self.diversity)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How captions are drawn at random."""

    temperature: float = 1.0
    """What log-probabilities are divided by: below 1 likely words become likelier."""
    top_k: int | None = None
    """Draw from so many of the likeliest words; None is from all."""
    top_p: float = 1.0
    """Draw from the likeliest words that together have this probability."""
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature must be above 0", self.temperature)
        require(self.top_k is None or self.top_k >= 1, "top k must be at least 1", self.top_k)
        require(0 < self.top_p <= 1, "top p must be in (0, 1]", self.top_p)
        require(0 <= self.seed < 2**32, "seed must be in 0..2**32 - 1", self.seed)


@dataclass(frozen=True, kw_only=True)
class FigureStyle:
    """How attention is drawn."""

    overlay_style: OverlayStyle = "smooth"
    """Smooth heat, or the raw cells of the grid."""
    columns: int = 5
    """Panels in a row of --overlay. Five are as wide as a page's text, two or three as a paper's column."""
    colormap: str = "inferno"
    """One of matplotlib's. The default is perceptually uniform, and brighter is more in grey print too."""
    words: tuple[str, ...] = ()
    """In --overlay and --matrix, draw these words only."""
    dpi: int = 200
    """Pixels an inch, of pictures; text in svg and pdf stays text."""

    def __post_init__(self) -> None:
        require(1 <= self.columns <= 100, "columns must be in 1..100", self.columns)
        require(10 <= self.dpi <= 2400, "dpi must be in 10..2400", self.dpi)
        width_px = self.columns * self.dpi
        require(width_px <= MAX_FIGURE_PX, f"columns times dpi must be at most {MAX_FIGURE_PX:,}", width_px)


DEFAULT_STYLE = FigureStyle()


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All that is needed, beside the weights and the vocabulary, to load and run a model."""

    format_version: int
    backbone: str
    preprocess: PreprocessConfig
    grid: GridConfig
    annotation_dim: int
    decoder: DecoderConfig
    decoding: DecodingConfig

    def __post_init__(self) -> None:
        _require_known_format(self.format_version)
        require(
            1 <= self.annotation_dim <= MAX_DIM,
            f"annotation_dim must be in 1..{MAX_DIM}",
            self.annotation_dim,
        )


@dataclass(frozen=True, kw_only=True)
class TranslationConfig:
    """As `ModelConfig`, of a model that translates sentences."""

    format_version: int
    text_encoder: TextEncoderConfig
    decoder: DecoderConfig
    decoding: DecodingConfig

    def __post_init__(self) -> None:
        _require_known_format(self.format_version)


def _require_known_format(version: int) -> None:
    require(
        1 <= version <= FORMAT_VERSION,
        f"update captioner: this one reads model folders of formats 1 to {FORMAT_VERSION}",
        version,
    )
