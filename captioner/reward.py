"""What a sampled caption is worth: its CIDEr-D against the picture's own captions, as it would be printed."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from pycocoevalcap.bleu.bleu import Bleu
from torch import Tensor
from tqdm import tqdm

from captioner.batches import CaptionBatch
from captioner.cider import CiderD
from captioner.metrics import ptb_tokenize
from captioner.vocabulary import END, SPECIAL_TOKENS, Vocabulary

_END = SPECIAL_TOKENS[END]


class Reward:
    """CIDEr-D, with BLEU-4 of the single caption (0..1) added by a weight.

    Document frequencies are those of the training captions. The end of a caption counts as a word, so
    that one broken off, as in "a dog runs through the", is worth less than one that ends: without it,
    training to CIDEr-D learns to break captions off.
    """

    def __init__(
        self, references: Mapping[str, Sequence[str]], *, vocabulary: Vocabulary, bleu_weight: float
    ) -> None:
        """`references` are the training captions, by the id of what they are about."""
        self.vocabulary, self.bleu_weight = vocabulary, bleu_weight
        bar = tqdm(references.items(), desc="captions for the reward", delay=2)
        self._references = {
            source: [[*ptb_tokenize(text), _END] for text in captions] for source, captions in bar
        }
        self._cider = CiderD(self._references.values())

    def __call__(self, batch: CaptionBatch) -> Float[Tensor, "batch captions"]:
        """The rewards of a batch's captions, which are about what the references are about."""
        rewards = []
        for source, tokens in zip(batch.ids, batch.tokens.tolist(), strict=True):
            references = self._references[source]
            captions = [self._words(caption) for caption in tokens]
            scores = self._cider.scores(captions, references)
            if self.bleu_weight:
                bleu = _bleu_4(captions, references)
                scores = [score + self.bleu_weight * b for score, b in zip(scores, bleu, strict=True)]
            rewards.append(scores)
        return torch.tensor(rewards)

    def _words(self, tokens: Iterable[int]) -> list[str]:
        """The words that a scorer sees in the caption as printed, and its end if it has one."""
        tokens = list(tokens)
        return [*ptb_tokenize(self.vocabulary.caption(tokens)), *([_END] if END in tokens else [])]


def _bleu_4(captions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[float]:
    truths = {number: [" ".join(words) for words in references] for number in range(len(captions))}
    results = {number: [" ".join(words)] for number, words in enumerate(captions)}
    _, by_caption = Bleu(4).compute_score(truths, results, verbose=0)
    return [float(value) for value in by_caption[3]]


def advantages(rewards: Float[Tensor, "batch captions"]) -> Float[Tensor, "batch captions"]:
    """Each sample's reward less the mean of the picture's other samples.

    A baseline of the samples themselves (Mnih and Rezende 2016; Luo 2020, "A Better Variant of
    Self-Critical Sequence Training") in place of the greedy caption's reward of Rennie et al. 2017. It
    does not depend on the sample it is taken from, so it leaves the expected gradient as it is.
    """
    others = rewards.shape[1] - 1
    return rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / others
