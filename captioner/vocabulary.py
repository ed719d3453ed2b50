"""How words, or parts of words, become ids and back."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import msgspec

from captioner.errors import CaptionerError

PAD, START, END, UNK = range(4)
SPECIAL_TOKENS = ("<pad>", "<start>", "<end>", "<unk>")
WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"
"""What sentencepiece puts in the place of the space before a word."""


@cache
def _nltk() -> tuple[Any, Any]:
    """nltk's tokenizer and detokenizer, which take a third of a second to load and few captions need."""
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.treebank import TreebankWordDetokenizer

    return NLTKWordTokenizer(), TreebankWordDetokenizer()


# Most captions are nothing but words, commas and a full stop, which need no rules but these.
_PLAIN_WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_PLAIN_CAPTION = re.compile(rf"\s*{_PLAIN_WORD}(?:\s?,?\s+{_PLAIN_WORD})*\s*\.?\s*")
_PLAIN_MARKS = str.maketrans(",.", "  ")
_PLAIN = re.compile(_PLAIN_WORD)
_SPLIT_WORDS = ("cannot", "gimme", "gonna", "gotta", "lemme", "wanna")
_SECOND_HALVES = ("not", "me", "na", "ta")  # of these words


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case words; what holds no letter or digit is punctuation and goes.

    The words are those of nltk's tokenizer; for plain captions they are had twenty times faster.
    """
    text = caption.lower()
    if _PLAIN_CAPTION.fullmatch(text) and not any(word in text for word in _SPLIT_WORDS):
        return text.translate(_PLAIN_MARKS).split()
    tokenizer, _ = _nltk()
    words = tokenizer.tokenize(text)
    return [word for word in words if any(character.isalnum() for character in word)]


def detokenize(words: Sequence[str]) -> str:
    """Join words into a caption, for example "the dog 's tail" into "the dog's tail", as nltk does."""
    if all(_PLAIN.fullmatch(word) and word not in _SECOND_HALVES for word in words):
        return " ".join(words)
    _, detokenizer = _nltk()
    text: str = detokenizer.detokenize(words)
    return text


class VocabularyError(CaptionerError):
    """A vocabulary that cannot be used here; the message says what to do."""


def _pieces(subword_model: Any) -> tuple[str, ...]:
    return tuple(subword_model.id_to_piece(number) for number in range(len(subword_model)))


@dataclass(frozen=True)
class Vocabulary:
    """The words a model knows; a word's id is its place.

    With `subwords`, a model of sentencepiece (Kudo and Richardson 2018), they are parts of words as they
    stand in a text, cases and marks included; one that begins a word begins with `WORD_START`. All texts can
    be made of them whose letters are in those that they were built from. sentencepiece first makes some
    characters alike, as NFKC does: an ellipsis becomes three dots.

    Raises:
        ValueError: the first four are not `SPECIAL_TOKENS`, a word occurs twice, or the words are not those
            of the subword model.
    """

    words: tuple[str, ...]
    subwords: bytes | None = None

    def __post_init__(self) -> None:
        if self.words[:4] != SPECIAL_TOKENS:
            raise ValueError(f"a vocabulary begins with {', '.join(SPECIAL_TOKENS)}, not {self.words[:4]}")
        repeated = [word for word, count in Counter(self.words).items() if count > 1]
        if repeated:
            raise ValueError(f"a vocabulary holds each word once, but {repeated[0]!r} is there again")
        if self.subwords is not None and self.words != _pieces(self._subword_model):
            raise ValueError(
                "a vocabulary of subwords holds the words of its sentencepiece model, not others"
            )

    @classmethod
    def build(cls, captions: Iterable[str], *, min_count: int) -> "Vocabulary":
        """Collect the words that occur at least `min_count` times, the most frequent first."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = [word for word, count in counts.items() if count >= min_count and word not in SPECIAL_TOKENS]
        kept.sort(key=lambda word: (-counts[word], word))
        return cls(SPECIAL_TOKENS + tuple(kept))

    @classmethod
    def build_subwords(cls, texts: Iterable[str], *, size: int) -> "Vocabulary":
        """The `size` parts of words that byte-pair encoding finds in the texts (Sennrich et al. 2016), or
        fewer where the texts do not have so many.

        Raises:
            ValueError: there are fewer than the texts have letters.
        """
        import sentencepiece

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
                f"sentencepiece makes no {size} subwords of these texts, which have {num_letters} letters "
                "and other characters; it needs more than there are of those"
            ) from error
        model = written.getvalue()
        return cls(_pieces(sentencepiece.SentencePieceProcessor(model_proto=model)), model)

    @cached_property
    def _subword_model(self) -> Any:
        try:
            import sentencepiece

            return sentencepiece.SentencePieceProcessor(model_proto=self.subwords)
        except RuntimeError as error:
            raise ValueError(f"the vocabulary's sentencepiece model cannot be read: {error}") from None
        except ModuleNotFoundError:
            raise VocabularyError(
                "the model reads subwords, which needs sentencepiece; install it with: pip install "
                "'captioner[translate]'"
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
            return tokenize(caption)
        pieces: list[str] = self._subword_model.encode(caption, out_type=str)
        return pieces

    def ids(self, words: Iterable[str]) -> list[int]:
        """Ids of words between <start> and <end>; an unknown word becomes <unk>."""
        return [START, *(self._id_of.get(word, UNK) for word in words), END]

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """Words of the ids, special tokens left out."""
        return [self.words[token] for token in tokens if token >= len(SPECIAL_TOKENS)]

    def caption(self, tokens: Iterable[int]) -> str:
        """The ids as the text that a user is shown."""
        words = self.decode(tokens)
        if self.subwords is None:
            return detokenize(words)
        return " ".join("".join(words).replace(WORD_START, " ").split())

    def to_json(self) -> bytes:
        fields = {"words": self.words} if self.subwords is None else self
        return msgspec.json.format(msgspec.json.encode(fields), indent=1)

    @classmethod
    def from_json(cls, text: bytes) -> "Vocabulary":
        """Raises: msgspec.ValidationError, naming the place that is wrong."""
        return msgspec.json.decode(text, type=cls)
