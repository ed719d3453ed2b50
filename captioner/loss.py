"""What training minimises: cross-entropy or a reward, the attention penalty, what hard attention adds."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from captioner.attention import Choice
from captioner.decoder import DecoderOutput
from captioner.sampling import without_banned


@dataclass(frozen=True)
class LossTerms:
    """The terms of the loss, each a scalar; `total` is what is differentiated. `hard_attention` is there for
    hard attention alone."""

    total: Float[Tensor, ""]
    cross_entropy: Float[Tensor, ""]
    attention_penalty: Float[Tensor, ""]
    hard_attention: Float[Tensor, ""] | None = None

    def named(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class CaptionLoss:
    """Cross-entropy with a doubly stochastic attention penalty (Xu et al. 2015, eq. 14).

        total = mean over words of -log p(y_t)  +  lambda * mean over captions of sum_i (1 - sum_t alpha_ti)^2

    Hard attention adds what it learns its choices by (eq. 12): over the words of each caption,

        -lambda_r * (log p(y) - b) * sum_t log alpha_t(s_t)  -  lambda_e * sum_t H(alpha_t)

    where s_t is the cell drawn and b a moving average of log p(y); this too is divided by the number of
    words of the batch.

    Differs from the paper in that the first term is a mean over the real words of the batch instead of
    a sum over each caption's, so that neither the batch nor long captions change the learning rate's
    meaning. The penalty is summed over cells and averaged over captions; padded steps and captions of
    length 0 count for nothing. Label smoothing is in `total` only: `cross_entropy` is reported without.
    """

    label_smoothing: float
    attention_penalty: float
    reinforce_weight: float = 0.0
    attention_entropy_weight: float = 0.0

    def __call__(
        self,
        output: DecoderOutput,
        tokens: Int[Tensor, "batch captions tokens"],
        *,
        size: "BatchSize | None" = None,
        baseline: float = 0.0,
    ) -> LossTerms:
        """The terms of a batch. Where it is a part of a larger one, whose `size` is given, the terms of
        the parts add up to those of the whole. `baseline` is hard attention's b."""
        size = size or BatchSize.of(output.is_word)
        targets = tokens[..., 1:][output.is_word]
        smoothed = cross_entropy(
            output.logits, targets, label_smoothing=self.label_smoothing, reduction="sum"
        )
        negative_log_likelihood = cross_entropy(output.logits.detach(), targets, reduction="none")
        penalty = attention_penalty(output) / size.captions
        total = smoothed / size.words + self.attention_penalty * penalty
        hard_attention = None
        if output.choice is not None:
            hard_attention = self._hard_attention(
                output.choice, output.is_word, negative_log_likelihood, baseline
            )
            hard_attention = hard_attention / size.words
            total = total + hard_attention
        return LossTerms(
            total=total,
            cross_entropy=negative_log_likelihood.sum() / size.words,
            attention_penalty=penalty,
            hard_attention=hard_attention,
        )

    def _hard_attention(
        self,
        choice: Choice,
        is_word: Bool[Tensor, "batch captions steps"],
        negative_log_likelihood: Float[Tensor, " words"],
        baseline: float,
    ) -> Float[Tensor, ""]:
        """The two terms of eq. 12 that teach where to look, summed over captions."""
        by_step = torch.zeros_like(choice.log_prob)
        by_step[is_word] = -negative_log_likelihood
        gain = by_step.sum(dim=2) - baseline
        reinforced = (gain * choice.log_prob.sum(dim=2)).sum()
        return -self.reinforce_weight * reinforced - self.attention_entropy_weight * choice.entropy.sum()


@dataclass(frozen=True, kw_only=True)
class SelfCriticalLoss:
    """What makes sampled captions likelier that were worth more than others of their picture.

        total = mean over words of -advantage(y) log p(y_t)  +  lambda * attention penalty

    REINFORCE (Williams 1992) as used by Rennie et al. 2017, "Self-critical Sequence Training"; the
    advantages are those of `captioner.reward.advantages`. As in sampling, tokens that no caption may hold
    have no probability. Differs from the exact gradient of the expected reward in that the sum over a
    step's captions is divided by their number of words, which is drawn too, and, where there is dropout,
    in that samples are drawn without it. `cross_entropy` is that of the samples, which falls as the model
    gets surer.
    """

    attention_penalty: float

    def __call__(
        self,
        output: DecoderOutput,
        tokens: Int[Tensor, "batch captions tokens"],
        *,
        advantages: Float[Tensor, "batch captions"],
        size: "BatchSize | None" = None,
    ) -> LossTerms:
        size = size or BatchSize.of(output.is_word)
        targets = tokens[..., 1:][output.is_word]
        negative_log_likelihood = cross_entropy(without_banned(output.logits), targets, reduction="none")
        weights = advantages[..., None].expand(output.is_word.shape)[output.is_word]
        penalty = attention_penalty(output) / size.captions
        return LossTerms(
            total=(weights * negative_log_likelihood).sum() / size.words + self.attention_penalty * penalty,
            cross_entropy=negative_log_likelihood.detach().sum() / size.words,
            attention_penalty=penalty,
        )


@dataclass(frozen=True)
class BatchSize:
    """What the terms of a loss are means over."""

    words: Int[Tensor, ""]
    captions: Int[Tensor, ""]

    @classmethod
    def of(cls, is_word: Bool[Tensor, "batch captions steps"]) -> "BatchSize":
        return cls(is_word.sum(), is_word.any(dim=2).sum())


def attention_penalty(output: DecoderOutput) -> Float[Tensor, ""]:
    """How far each cell's attention, summed over a caption's words, is from one: summed over captions."""
    is_caption = output.is_word.any(dim=2)
    lacking = (1 - output.alphas.sum(dim=2)).square()
    if output.is_cell is not None:
        lacking = lacking * output.is_cell[:, None]
    return lacking[is_caption].sum()
