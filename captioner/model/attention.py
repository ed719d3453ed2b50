"""Attention: scores, and soft and hard context vectors.

A score (`AdditiveScore` and the like) compares each cell with the hidden state; `attend` turns the scores
into weights and the context. Energies and weights always have an axis of heads, of length 1 for a single
head; keys and values have one, before the cells, only if each head has a share of their channels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import one_hot

from captioner.config import DecoderConfig

Keys = Float[Tensor, "batch *by_head cells keys"]
Values = Float[Tensor, "batch *by_head cells values"]
Annotations = Float[Tensor, "batch cells annotation"]
Hidden = Float[Tensor, "batch captions hidden"]
Energies = Float[Tensor, "batch captions heads cells"]


class AdditiveScore(nn.Module):
    """e_ti = v . tanh(W a_i + U h_{t-1}) (Bahdanau et al. 2015; Xu et al. 2015, eq. 4).

    The tanh is around the sum: if it were v . (tanh(W a_i) + tanh(U h)), the hidden state would cancel in
    the softmax and every word would get the same map.
    """

    def __init__(self, *, annotation_dim: int, hidden_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.value_dim = annotation_dim
        self.key = nn.Linear(annotation_dim, attention_dim)
        self.query = nn.Linear(hidden_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)
        # Annotations have unit variance (see LSTMDecoder) and hidden units are below one. Spread this
        # widely, the sums leave the linear part of tanh, where the hidden state would cancel in the
        # softmax too, and the maps begin to differ from word to word early in training.
        nn.init.normal_(self.key.weight, std=annotation_dim**-0.5)
        nn.init.zeros_(self.key.bias)
        nn.init.normal_(self.query.weight, std=2 * hidden_dim**-0.5)
        nn.init.normal_(self.score.weight, std=attention_dim**-0.5)

    def project(self, annotations: Annotations) -> tuple[Keys, Values]:
        """Keys W a_i and values a_i, the same for all words and captions."""
        return self.key(annotations), annotations

    def forward(self, keys: Keys, hidden: Hidden) -> Energies:
        return self.score(torch.tanh(keys[:, None] + self.query(hidden)[:, :, None])).transpose(2, 3)


class DotScore(nn.Module):
    """e_ti = h_{t-1} . a_i / sqrt(n) (Luong et al. 2015, eq. 8), without weights.

    Differs from Luong in the factor, which keeps the softmax from saturating (Vaswani et al. 2017).
    Annotations whose size differs from the hidden state's are first mapped to it linearly; keys and values
    then both have that size.
    """

    def __init__(self, *, annotation_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.value_dim = hidden_dim
        is_same = annotation_dim == hidden_dim
        self.resize = nn.Identity() if is_same else nn.Linear(annotation_dim, hidden_dim)

    def project(self, annotations: Annotations) -> tuple[Keys, Values]:
        resized = self.resize(annotations)
        return resized, resized

    def forward(self, keys: Keys, hidden: Hidden) -> Energies:
        return _scaled_dot(keys, hidden)


class GeneralScore(nn.Module):
    """e_ti = h_{t-1} . W a_i / sqrt(n) (Luong et al. 2015, eq. 8; the factor as in `DotScore`)."""

    def __init__(self, *, annotation_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.value_dim = annotation_dim
        self.key = nn.Linear(annotation_dim, hidden_dim, bias=False)

    def project(self, annotations: Annotations) -> tuple[Keys, Values]:
        return self.key(annotations), annotations

    def forward(self, keys: Keys, hidden: Hidden) -> Energies:
        return _scaled_dot(keys, hidden)


def _scaled_dot(keys: Keys, hidden: Hidden) -> Energies:
    return (hidden @ keys.transpose(1, 2))[:, :, None] / keys.shape[-1] ** 0.5


class MultiheadScore(nn.Module):
    """Several scaled dot products side by side (Vaswani et al. 2017, section 3.2.2).

    Each head compares its share of the projected hidden state and annotations, and averages its share
    of the values. There is no output projection: whatever reads the context has one.
    """

    def __init__(self, *, annotation_dim: int, hidden_dim: int, attention_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.value_dim = num_heads, hidden_dim
        self.query = nn.Linear(hidden_dim, attention_dim)
        self.key = nn.Linear(annotation_dim, attention_dim)
        self.value = nn.Linear(annotation_dim, hidden_dim)

    def project(self, annotations: Annotations) -> tuple[Keys, Values]:
        keys, values = self._by_head(self.key(annotations)), self._by_head(self.value(annotations))
        return keys.contiguous(), values.contiguous()  # once, not at each step

    def forward(self, keys: Keys, hidden: Hidden) -> Energies:
        query = self._by_head(self.query(hidden) / keys.shape[-1] ** 0.5)
        return (query @ keys.transpose(2, 3)).transpose(1, 2)

    def _by_head(self, rows: Float[Tensor, "batch rows channels"]) -> Float[Tensor, "batch heads rows share"]:
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class NoScore(nn.Module):
    """The same score for every cell: the context is the mean annotation (no attention)."""

    def __init__(self, *, annotation_dim: int) -> None:
        super().__init__()
        self.value_dim = annotation_dim

    def project(self, annotations: Annotations) -> tuple[Keys, Values]:
        return annotations, annotations

    def forward(self, keys: Keys, hidden: Hidden) -> Energies:
        return hidden.new_zeros(*hidden.shape[:2], 1, keys.shape[1])


Score = AdditiveScore | DotScore | GeneralScore | MultiheadScore | NoScore


def make_score(config: DecoderConfig, *, annotation_dim: int) -> Score:
    """The score that a config names, with random weights."""
    hidden_dim, attention_dim = config.hidden_dim, config.attention_dim
    if config.attention == "none":
        return NoScore(annotation_dim=annotation_dim)
    if config.score == "additive":
        return AdditiveScore(
            annotation_dim=annotation_dim, hidden_dim=hidden_dim, attention_dim=attention_dim
        )
    if config.score == "dot":
        return DotScore(annotation_dim=annotation_dim, hidden_dim=hidden_dim)
    if config.score == "general":
        return GeneralScore(annotation_dim=annotation_dim, hidden_dim=hidden_dim)
    return MultiheadScore(
        annotation_dim=annotation_dim,
        hidden_dim=hidden_dim,
        attention_dim=attention_dim,
        num_heads=config.num_heads,
    )


@dataclass(frozen=True)
class HardAttentionSample:
    """The cell that hard attention sampled for a word, as REINFORCE needs it: its log-probability, zero where
    the expected context was used instead, and the entropy of the distribution."""

    log_prob: Float[Tensor, "batch captions *steps"]
    entropy: Float[Tensor, "batch captions *steps"]


@dataclass(frozen=True)
class AttentionOutput:
    """The context z, its weights alpha and, for hard attention in training, the sample behind them."""

    context: Float[Tensor, "batch captions context"]
    alphas: Float[Tensor, "batch captions heads cells"]
    hard_sample: HardAttentionSample | None


def mask_padding(energies: Energies, cell_mask: Bool[Tensor, "batch cells"] | None) -> Energies:
    """Energies that give padded cells no weight."""
    return energies if cell_mask is None else energies.masked_fill(~cell_mask[:, None, None], -torch.inf)


def attend(energies: Energies, values: Values) -> AttentionOutput:
    """Soft attention (Xu et al. 2015, eq. 5 and 13): alpha = softmax(e), z = sum_i alpha_i a_i."""
    alphas = energies.float().softmax(dim=-1)
    return AttentionOutput(_context(alphas, values), alphas, None)


def attend_hard(
    energies: Energies, values: Values, *, is_training: bool, expected_share: float = 0.5
) -> AttentionOutput:
    """Hard attention (Xu et al. 2015, section 4.1): the context is the annotation of one cell.

    In training the cell is drawn from softmax(e), and for a share of the words the expected context is
    used instead; otherwise it is the likeliest cell. Differs from the paper in that this is decided
    per word, not per picture.
    """
    probabilities = energies.float().softmax(dim=-1)
    if not is_training:
        likeliest = probabilities.argmax(dim=-1, keepdim=True)
        alphas = torch.zeros_like(probabilities).scatter(-1, likeliest, 1.0)
        return AttentionOutput(_context(alphas, values), alphas, None)
    drawable = probabilities.detach().nan_to_num(1.0)  # non-finite values are reported by the loss
    cells = drawable.flatten(0, -2).multinomial(1).view(probabilities.shape[:-1])
    is_expected: Bool[Tensor, "batch captions 1"] = (
        torch.rand(cells.shape, device=cells.device) < expected_share
    )
    alphas = torch.where(is_expected[..., None], probabilities, one_hot(cells, probabilities.shape[-1]))
    log_probabilities = energies.float().log_softmax(dim=-1)
    log_prob = log_probabilities.gather(-1, cells[..., None])[..., 0].masked_fill(is_expected, 0.0)
    finite = log_probabilities.masked_fill(probabilities == 0, 0.0)  # p log p is 0 where p is
    entropy = -(probabilities * finite).sum(dim=-1)
    return AttentionOutput(
        _context(alphas, values), alphas, HardAttentionSample(log_prob[..., 0], entropy[..., 0])
    )


def _context(
    alphas: Float[Tensor, "batch captions heads cells"], values: Values
) -> Float[Tensor, "batch captions context"]:
    """Each head averages its own share of the values' channels, or a single one all of them."""
    weights = alphas.to(values.dtype)
    if values.ndim == 3:
        return weights[:, :, 0] @ values
    return (weights.transpose(1, 2) @ values).transpose(1, 2).flatten(2)
