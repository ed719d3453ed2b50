"""Dataset of sentences: padded tokens and encoded translations."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from captioner.data.batching import CaptionItem, EncodedCaptions
from captioner.data.epoch_order import SampleKey
from captioner.records import TranslatedSentence
from captioner.vocabulary import PAD, UNK, Vocabulary


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """Sentences of a batch, `lengths` tokens each and then <pad>."""

    tokens: Int[Tensor, "batch cells"]
    lengths: Int[Tensor, " batch"]

    @classmethod
    def from_tokens(cls, sentences: Sequence[Tensor]) -> "Sentences":
        lengths = torch.tensor([len(tokens) for tokens in sentences])
        padded = pad_sequence(list(sentences), batch_first=True, padding_value=PAD)
        return cls(tokens=padded, lengths=lengths)


def sentence_tokens(vocabulary: Vocabulary, sentence: str) -> Int[Tensor, " cells"]:
    """What the encoder reads of a sentence; an empty one becomes a single <unk>."""
    return torch.tensor(vocabulary.encode(sentence)[1:-1] or [UNK])


class SentenceDataset(Dataset[CaptionItem]):
    """The sentences of a split with their encoded translations (a `CaptionedDataset`)."""

    def __init__(
        self, *, records: Sequence[TranslatedSentence], vocabulary: Vocabulary, max_words: int | None
    ) -> None:
        self.records, self.vocabulary = records, vocabulary
        translations = [record.translations for record in records]
        self.captions = EncodedCaptions(translations, vocabulary=vocabulary, max_words=max_words)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> CaptionItem:
        record = self.records[key.index]
        source = sentence_tokens(self.vocabulary, record.sentence)
        return CaptionItem(record.sentence_id, record.sentence_id, source, self.captions[key.index])

    @staticmethod
    def stack(sources: Sequence[Tensor]) -> Sentences:
        return Sentences.from_tokens(sources)

    @property
    def references(self) -> dict[str, tuple[str, ...]]:
        return {record.sentence_id: record.translations for record in self.records}

    @property
    def dataset_of(self) -> dict[str, str]:
        return {record.sentence_id: "" for record in self.records}

    @property
    def weights(self) -> None:
        return None

    @property
    def encodes_on_the_fly(self) -> bool:
        return False

    def drop_feature_cache(self) -> None:
        """Nothing to do: sentences have no cache."""
