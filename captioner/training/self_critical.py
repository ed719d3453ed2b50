"""Self-critical training: sampled captions, their reward and their loss."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from captioner.decoding.search import BANNED_TOKENS
from captioner.evaluation.cider import CiderD
from captioner.evaluation.hallucination import named_objects, present_objects
from captioner.evaluation.metrics import ptb_tokenize
from captioner.model.batch import CaptionBatch
from captioner.model.decoder import Decoder, DecoderOutput
from captioner.training.loss import TokenCounts, add_supervision, attention_penalty
from captioner.vocabulary import END, PAD, SPECIAL_TOKENS, START, Vocabulary

_END = SPECIAL_TOKENS[END]


@torch.no_grad()
def sample_captions(
    decoder: Decoder,
    annotations: Float[Tensor, "batch cells annotation"],
    *,
    num_captions: int,
    max_words: int,
) -> tuple[Int[Tensor, "batch captions tokens"], Int[Tensor, "batch captions"]]:
    """Sample captions from the model's distribution, on its device.

    Gives their tokens and lengths as in `CaptionBatch`, the longest of each picture first. A caption that
    has not ended after `max_words` words is cut and has no <end>. Unlike in a search, a caption may end
    before its first word.
    """
    memory = decoder.prepare_memory(annotations)
    state = decoder.initial_state(memory, num_captions)
    steps = [torch.full((len(annotations), num_captions), START, device=annotations.device)]
    is_open = torch.ones_like(steps[0], dtype=torch.bool)
    lengths = torch.zeros_like(steps[0])
    for num_words in range(max_words + 1):
        output = decoder.step(steps[-1], state, memory)
        state = output.state
        probabilities = without_banned(decoder.logits(output.readout)).softmax(dim=-1)
        drawable = probabilities.flatten(0, 1).nan_to_num(1.0)  # non-finite values are reported by the loss
        drawn = drawable.multinomial(1).view_as(is_open)
        if num_words == max_words:
            is_open = is_open & (drawn == END)  # captions that continue are cut here
        steps.append(torch.where(is_open, drawn, PAD))
        lengths += is_open
        is_open = is_open & (drawn != END)
        if not is_open.any():
            break
    lengths, order = lengths.sort(dim=1, descending=True)
    tokens = torch.stack(steps, dim=-1)
    return tokens.gather(1, order[..., None].expand_as(tokens)), lengths


def without_banned(logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    """Logits that give no probability to tokens that captions may not contain."""
    banned = torch.tensor(BANNED_TOKENS, device=logits.device)
    return logits.index_fill(-1, banned, -torch.inf)


class Reward:
    """CIDEr-D of each caption as it would be printed, against the source's own captions.

    Document frequencies are those of the training captions of the source's data set. The end of a caption
    counts as a word, so that a truncated one, such as "a dog runs through the", is worth less than a complete
    one: otherwise training for CIDEr-D learns to truncate captions.

    Where objects are annotated, a caption loses `object_penalty` for each object that it names and that is
    not in the picture, counted as CHAIR does (`captioner.evaluation.hallucination`).
    """

    def __init__(
        self,
        references: Mapping[str, Sequence[str]],
        *,
        vocabulary: Vocabulary,
        dataset_of: Mapping[str, str] | None = None,
        objects: Mapping[str, Collection[str]] | None = None,
        object_penalty: float = 0.0,
    ) -> None:
        """`references` are the training captions, and `dataset_of` has the data set, by the source's id;
        `objects` are the annotated categories of those pictures where they are known."""
        self.vocabulary = vocabulary
        bar = tqdm(references.items(), desc="captions for the reward", delay=2)
        self._references = {
            source: [[*ptb_tokenize(text), _END] for text in captions] for source, captions in bar
        }
        self._dataset_of = dataset_of or dict.fromkeys(references, "")
        self._cider_of = {
            dataset: CiderD(
                words for source, words in self._references.items() if self._dataset_of[source] == dataset
            )
            for dataset in set(self._dataset_of.values())
        }
        self._object_penalty = object_penalty
        self._present = {
            source: present_objects(references[source], annotated)
            for source, annotated in (objects or {}).items()
        }

    def __call__(self, batch: CaptionBatch) -> Float[Tensor, "batch captions"]:
        """The rewards of a batch's captions."""
        rewards = []
        for source, captions in zip(batch.ids, batch.tokens.tolist(), strict=True):
            texts = [self.vocabulary.caption(tokens) for tokens in captions]
            words = [
                [*ptb_tokenize(text), *([_END] if END in tokens else [])]
                for text, tokens in zip(texts, captions, strict=True)
            ]
            scores = self._cider_of[self._dataset_of[source]].scores(words, self._references[source])
            penalties = [self._penalty(source, text) for text in texts]
            rewards.append([score - penalty for score, penalty in zip(scores, penalties, strict=True)])
        return torch.tensor(rewards)

    def _penalty(self, source: str, text: str) -> float:
        if source not in self._present:
            return 0.0
        absent = [category for category in named_objects(text) if category not in self._present[source]]
        return self._object_penalty * len(absent)


def advantages(rewards: Float[Tensor, "batch captions"]) -> Float[Tensor, "batch captions"]:
    """Each sample's reward minus the mean of the picture's other samples.

    This baseline (Mnih and Rezende 2016; Luo 2020, "A Better Variant of Self-Critical Sequence Training")
    replaces the greedy caption's reward of Rennie et al. 2017. It does not depend on the sample it is
    subtracted from, so it leaves the expected gradient unchanged.
    """
    others = rewards.shape[1] - 1
    return rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / others


@dataclass(frozen=True, kw_only=True)
class SelfCriticalLoss:
    """Loss that makes sampled captions likelier if they are worth more than others of their picture.

        total = mean over words of -advantage(y) log p(y_t)  +  lambda * attention penalty
                + lambda_s * attention supervision

    REINFORCE (Williams 1992) as used by Rennie et al. 2017, "Self-critical Sequence Training". As in
    sampling, tokens that captions may not contain have no probability. Differs from the exact gradient of
    the expected reward in that the sum over a step's captions is divided by their number of words, which is
    random too, and in that samples are drawn without dropout. `cross_entropy` is that of the samples, which
    falls as the model becomes more certain.
    """

    attention_penalty: float
    reward: Reward
    attention_supervision: float = 0.0

    def __call__(
        self,
        output: DecoderOutput,
        batch: CaptionBatch,
        *,
        counts: TokenCounts | None = None,
        baseline: float = 0.0,  # noqa: ARG002 (the samples are each other's baseline)
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of a batch of sampled captions by name, as `CaptionLoss` gives them."""
        counts = counts or TokenCounts.from_mask(output.word_mask)
        rewards = self.reward(batch).to(output.logits.device)
        targets = batch.tokens[..., 1:][output.word_mask]
        negative_log_likelihood = cross_entropy(without_banned(output.logits), targets, reduction="none")
        weights = advantages(rewards)[..., None].expand(output.word_mask.shape)[output.word_mask]
        penalty = attention_penalty(output) / counts.captions
        terms = {
            "total": (weights * negative_log_likelihood).sum() / counts.words
            + self.attention_penalty * penalty,
            "cross_entropy": negative_log_likelihood.detach().sum() / counts.words,
            "attention_penalty": penalty,
            "reward": rewards.sum() / counts.captions,
        }
        add_supervision(terms, output, batch, counts, weight=self.attention_supervision)
        return terms
