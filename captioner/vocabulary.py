"""Vocabulary: words or subwords to ids and back."""

import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from captioner.errors import CaptionerError, reject_string
from captioner.tokenize import detokenize, tokenize

PAD, START, END, UNK = range(4)
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")
WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"
"""What sentencepiece writes for the space before a word."""


def _pieces(subword_model: Any) -> tuple[str, ...]:
    return tuple(subword_model.id_to_piece(number) for number in range(len(subword_model)))


@dataclass(frozen=True)
class Vocabulary:
    """The words a model knows; a word's id is its index.

    With `subwords`, a serialised sentencepiece model (Kudo and Richardson 2018), they are subwords of
    unchanged text, case and punctuation included; one that starts a word begins with `WORD_START`. They
    spell every text made of characters seen in training. sentencepiece normalises text as NFKC does, for
    example an ellipsis to three dots. With `keep_case` words keep their capitals.

    Raises:
        ValueError: the first four are not `SPECIAL_TOKENS`, a word occurs twice, or the words are not those
            of the subword model.
    """

    words: tuple[str, ...]
    subwords: bytes | None = None
    keep_case: bool = False

    def __post_init__(self) -> None:
        if self.words[:4] != SPECIAL_TOKENS:
            raise ValueError(f"a vocabulary starts with {', '.join(SPECIAL_TOKENS)}, not {self.words[:4]}")
        repeated = [word for word, count in Counter(self.words).items() if count > 1]
        if repeated:
            raise ValueError(f"each word may occur once in a vocabulary, but {repeated[0]!r} is repeated")
        if self.subwords is not None and self.words != _pieces(self._subword_model):
            raise ValueError("the words must be exactly the pieces of the sentencepiece model")

    @classmethod
    def build(cls, captions: Iterable[str], *, min_count: int, keep_case: bool = False) -> "Vocabulary":
        """Collect the words that occur at least `min_count` times, the most frequent first."""
        reject_string(captions, "captions")
        counts = Counter(word for caption in captions for word in tokenize(caption, keep_case=keep_case))
        kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL_TOKENS]
        kept.sort(key=lambda word: (-counts[word], word))
        return cls(SPECIAL_TOKENS + tuple(kept), keep_case=keep_case)

    @classmethod
    def build_subwords(cls, texts: Iterable[str], *, size: int) -> "Vocabulary":
        """Learn `size` subwords from texts by byte-pair encoding (Sennrich et al. 2016), or fewer if the
        texts do not yield as many.

        Raises:
            ValueError: `size` is smaller than the number of different characters in the texts.
        """
        import sentencepiece

        reject_string(texts, "texts")
        texts, written = list(texts), io.BytesIO()
        special: dict[str, Any] = {}
        for number, (name, token) in enumerate(
            zip(("pad", "bos", "eos", "unk"), SPECIAL_TOKENS, strict=True)
        ):
            special |= {f"{name}_id": number, f"{name}_piece": token}
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                model_type="bpe",
                vocab_size=size,
                hard_vocab_limit=False,
                character_coverage=1.0,
                num_threads=1,
                minloglevel=2,
                **special,
            )
        except RuntimeError as error:
            num_letters = len(set().union(*texts))
            raise ValueError(
                f"{size} subwords are too few for texts with {num_letters} different characters"
            ) from error
        model = written.getvalue()
        return cls(_pieces(sentencepiece.SentencePieceProcessor(model_proto=model)), model)

    @cached_property
    def _subword_model(self) -> Any:
        try:
            import sentencepiece

            return sentencepiece.SentencePieceProcessor(model_proto=self.subwords)
        except RuntimeError as error:
            raise ValueError(f"cannot read the vocabulary's sentencepiece model: {error}") from None
        except ModuleNotFoundError:
            raise CaptionerError(
                "this model uses subwords and needs sentencepiece; install it with: "
                "pip install 'captioner[translate]'"
            ) from None

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, caption: str) -> list[int]:
        """Ids of a caption's words between <start> and <end>; an unknown word becomes <unk>."""
        return self.ids(self.split(caption))

    def split(self, caption: str) -> list[str]:
        """A caption's words, or its subwords."""
        if self.subwords is None:
            return tokenize(caption, keep_case=self.keep_case)
        pieces: list[str] = self._subword_model.encode(caption, out_type=str)
        return pieces

    def ids(self, words: Iterable[str]) -> list[int]:
        """Ids of words between <start> and <end>; an unknown word becomes <unk>."""
        reject_string(words, "words")
        return [START, *(self._id_of.get(word, UNK) for word in words), END]

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """Words of the ids, special tokens left out."""
        return [self.words[token] for token in tokens if token >= len(SPECIAL_TOKENS)]

    def caption(self, tokens: Iterable[int]) -> str:
        """The ids as the text shown to a user."""
        words = self.decode(tokens)
        if self.subwords is None:
            return detokenize(words)
        return " ".join("".join(words).replace(WORD_START, " ").split())

    def to_json(self) -> bytes:
        stored: dict[str, Any] = {"words": self.words}
        if self.subwords is not None:
            stored["subwords"] = self.subwords
        if self.keep_case:
            stored["keep_case"] = True
        return msgspec.json.format(msgspec.json.encode(stored), indent=1)

    @classmethod
    def from_json(cls, text: bytes) -> "Vocabulary":
        """Raises: msgspec.ValidationError, naming the position of the mistake."""
        return msgspec.json.decode(text, type=cls)
