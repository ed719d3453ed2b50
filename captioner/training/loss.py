"""Losses: cross-entropy, attention penalty and the terms of hard attention."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from captioner.model.attention import HardAttentionSample
from captioner.model.batch import CaptionBatch, Regions
from captioner.model.decoder import DecoderOutput

_LEAST_INSIDE = 1e-6  # of the attention


@dataclass(frozen=True)
class TokenCounts:
    """The numbers of words and captions over which the terms of a loss are averaged."""

    words: Int[Tensor, ""]
    captions: Int[Tensor, ""]

    @classmethod
    def from_mask(cls, word_mask: Bool[Tensor, "batch captions steps"]) -> "TokenCounts":
        return cls(word_mask.sum(), word_mask.any(dim=2).sum())


@dataclass(frozen=True, kw_only=True)
class CaptionLoss:
    """Cross-entropy with a doubly stochastic attention penalty (Xu et al. 2015, eq. 14).

        total = mean over words of -log p(y_t)  +  lambda * mean over captions of sum_i (1 - sum_t alpha_ti)^2

    Hard attention adds the terms by which it learns where to attend (eq. 12): over the words of each caption,

        -lambda_r * (log p(y) - b) * sum_t log alpha_t(s_t)  -  lambda_e * sum_t H(alpha_t)

    where s_t is the sampled cell and b a moving average of log p(y); this too is divided by the number of
    words of the batch.

    Where a word names an annotated object, supervised attention adds a term that draws its attention there,
    lambda_s times `attention_supervision` / number of words.

    Differs from the paper in that the first term is a mean over the real words of the batch instead of
    a sum over each caption's, so that neither the batch size nor long captions change the effective
    learning rate. The penalty is summed over cells and averaged over captions; padded steps and captions of
    length 0 are ignored. Label smoothing is in `total` only: `cross_entropy` is reported without.
    """

    label_smoothing: float
    attention_penalty: float
    reinforce_weight: float = 0.0
    attention_entropy_weight: float = 0.0
    attention_supervision: float = 0.0

    def __call__(
        self,
        output: DecoderOutput,
        batch: CaptionBatch,
        *,
        counts: TokenCounts | None = None,
        baseline: float = 0.0,
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of a batch by name, of which `total` is to be differentiated.

        With the `counts` of the whole step that the batch is a part of, the terms of the parts add up to
        those of the step. `baseline` is hard attention's b.
        """
        counts = counts or TokenCounts.from_mask(output.word_mask)
        targets = batch.tokens[..., 1:][output.word_mask]
        log_probs = output.logits.log_softmax(dim=-1)
        of_targets = -log_probs.gather(-1, targets[:, None])[:, 0]
        negative_log_likelihood = of_targets.detach()
        smoothing = self.label_smoothing  # a share of the target's probability is spread over all words
        smoothed = (1 - smoothing) * of_targets.sum() - smoothing * log_probs.mean(dim=-1).sum()
        penalty = attention_penalty(output) / counts.captions
        terms = {
            "total": smoothed / counts.words + self.attention_penalty * penalty,
            "cross_entropy": negative_log_likelihood.sum() / counts.words,
            "attention_penalty": penalty,
        }
        add_supervision(terms, output, batch, counts, weight=self.attention_supervision)
        if output.hard_sample is not None:
            terms["hard_attention"] = (
                self._hard_attention(output.hard_sample, output.word_mask, negative_log_likelihood, baseline)
                / counts.words
            )
            terms["total"] = terms["total"] + terms["hard_attention"]
        return terms

    def _hard_attention(
        self,
        sample: HardAttentionSample,
        word_mask: Bool[Tensor, "batch captions steps"],
        negative_log_likelihood: Float[Tensor, " words"],
        baseline: float,
    ) -> Float[Tensor, ""]:
        """The two terms of eq. 12 by which hard attention learns, summed over captions."""
        by_step = torch.zeros_like(sample.log_prob)
        by_step[word_mask] = -negative_log_likelihood
        gain = by_step.sum(dim=2) - baseline
        reinforced = (gain * sample.log_prob.sum(dim=2)).sum()
        return -self.reinforce_weight * reinforced - self.attention_entropy_weight * sample.entropy.sum()


def attention_penalty(output: DecoderOutput) -> Float[Tensor, ""]:
    """The squared difference from one of each cell's attention summed over a caption's words, summed over
    cells and captions."""
    is_caption = output.word_mask.any(dim=2)
    missing = (1 - output.alphas.sum(dim=2)).square()
    if output.cell_mask is not None:
        missing = missing * output.cell_mask[:, None]
    return missing[is_caption].sum()


def attention_supervision(output: DecoderOutput, regions: Regions) -> Float[Tensor, ""]:
    """How little of the attention lies on the objects that words name, summed over these words:

        -confidence * log sum_i coverage_i alpha_ti

    where coverage says how much of cell i the word's region covers (`captioner.model.batch.Regions`). Other
    words add nothing.

    Supervised attention of Liu et al. 2017, "Attention Correctness in Neural Image Captioning". Differs from
    the paper in that it is the attention on all of the region that counts, not how it is spread there: a word
    names one of several objects of its category, or a part of one.
    """
    assert regions.of_word is not None
    picture, caption, step = ((regions.of_word >= 0) & output.word_mask).nonzero(as_tuple=True)
    region = regions.of_word[picture, caption, step]
    inside = (output.alphas[picture, caption, step] * regions.coverage[picture, region]).sum(dim=-1)
    # Attention that is nowhere near must not give an infinite loss.
    return -(regions.confidence[picture, region] * (inside + _LEAST_INSIDE).log()).sum()


def add_supervision(
    terms: dict[str, Float[Tensor, ""]],
    output: DecoderOutput,
    batch: CaptionBatch,
    counts: TokenCounts,
    *,
    weight: float,
) -> None:
    """Add the term of supervised attention to the others, if the batch comes with annotated objects."""
    if batch.regions is not None:
        terms["attention_supervision"] = attention_supervision(output, batch.regions) / counts.words
        terms["total"] = terms["total"] + weight * terms["attention_supervision"]
