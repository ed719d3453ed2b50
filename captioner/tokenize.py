"""Words of a caption, and back.

A word is what spaces and punctuation separate. In scripts without spaces (Chinese, Japanese, Thai, ...) each
character is a word, together with the marks written on it, so that captions in any language are learned,
searched and scored by the same code.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from captioner.errors import reject_string

_SPACELESS_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x3007),
    (0x3031, 0x3035),
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Chinese characters
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x20000, 0x3FFFF),
)
_SPACELESS_CLASS = "".join(f"{chr(first)}-{chr(last)}" for first, last in _SPACELESS_RANGES)
_SPACELESS_MARKS = "".join(
    chr(code)
    for first, last in _SPACELESS_RANGES
    if last < 0x2E80  # no marks among Chinese characters
    for code in range(first, last + 1)
    if unicodedata.category(chr(code)).startswith("M")
)
_SPACELESS = re.compile(f"[{_SPACELESS_CLASS}][{_SPACELESS_MARKS}]*")

# What word processors and phones type for what keyboards have.
_APOSTROPHES = "\N{RIGHT SINGLE QUOTATION MARK}\N{LEFT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}"
_APOSTROPHES += "\N{FULLWIDTH APOSTROPHE}\N{ACUTE ACCENT}\N{PRIME}"
_KEYBOARD = str.maketrans(
    {
        **dict.fromkeys(_APOSTROPHES, "'"),
        **dict.fromkeys("\N{HYPHEN}\N{NON-BREAKING HYPHEN}", "-"),
        "\N{ZERO WIDTH SPACE}": " ",
        **dict.fromkeys(
            "\N{ZERO WIDTH NO-BREAK SPACE}\N{SOFT HYPHEN}\N{WORD JOINER}\N{VARIATION SELECTOR-16}", ""
        ),
    }
)
FIRST_EMOJI = 0x2600
# Punctuation that belongs to a word between its letters: in Catalan, and in Hebrew abbreviations.
_INNER_MARKS = "\N{MIDDLE DOT}\N{HEBREW PUNCTUATION GERESH}\N{HEBREW PUNCTUATION GERSHAYIM}"


@cache
def _nltk() -> tuple[Any, Any]:
    """nltk's tokenizer and detokenizer, which take a third of a second to import; few captions need them."""
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.treebank import TreebankWordDetokenizer

    return NLTKWordTokenizer(), TreebankWordDetokenizer()


# Most captions are only words, commas and a full stop, and need no other rules. At every character this
# pattern has one way to go on, so that matching takes time linear in the length of any text.
_PLAIN_WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_PLAIN_CAPTION = re.compile(rf"{_PLAIN_WORD}(?:(?: ,|,)? {_PLAIN_WORD})*(?: \.|\.)?")
_PLAIN_MARKS = str.maketrans(",.", "  ")
_PLAIN = re.compile(_PLAIN_WORD)
_SPLIT_WORDS = ("cannot", "gimme", "gonna", "gotta", "lemme", "wanna")
_SECOND_HALVES = ("not", "me", "na", "ta")  # of these words


def tokenize(caption: str, *, keep_case: bool = False) -> list[str]:
    """Split a caption into lower-case words, without punctuation (what has no letter or digit).

    The words are those of nltk's tokenizer; plain captions get them twenty times faster without it. The
    time is linear in the length: runs of blanks, on which nltk's rules are quadratic, are merged first.
    Typographic characters count as those of a keyboard, and emoji as spaces.
    """
    text = (
        caption
        if caption.isascii()
        else _without_marks(split_spaceless(normalised(caption.translate(_KEYBOARD))))
    )
    text = " ".join((text if keep_case else text.lower()).split())
    if _PLAIN_CAPTION.fullmatch(text) and not any(word in text for word in _SPLIT_WORDS):
        return text.translate(_PLAIN_MARKS).split()
    tokenizer, _ = _nltk()
    words = tokenizer.tokenize(text)
    return [word for word in words if any(character.isalnum() for character in word)]


def detokenize(words: Sequence[str]) -> str:
    """Join words into a caption, for example "the dog 's tail" into "the dog's tail", as nltk does."""
    reject_string(words, "words")
    if all(_PLAIN.fullmatch(word) and word not in _SECOND_HALVES for word in words):
        return " ".join(words)
    _, detokenizer = _nltk()
    text: str = detokenizer.detokenize(list(_joined(words)))
    return text


def is_spaceless(word: str) -> bool:
    """Whether a word is a character of a script without spaces."""
    return _SPACELESS.match(word) is not None


def split_spaceless(text: str) -> str:
    """The text with spaces around each character of a script without spaces."""
    return text if text.isascii() else _SPACELESS.sub(r" \g<0> ", text)


def are_spaceless(captions: Iterable[Sequence[str]]) -> bool:
    """Whether most words of captions are characters of a script without spaces."""
    found = [is_spaceless(word) for words in captions for word in words]
    return 2 * sum(found) > len(found)


def normalised(text: str) -> str:
    """The text in NFC, with ligatures and full-width letters and digits as usual ones.

    NFKC would do the same, but it also takes apart letters of Thai and Lao.
    """
    return unicodedata.normalize("NFC", _COMPATIBLE.sub(_compatible, text))


_COMPATIBLE = re.compile("[\ufb00-\ufb06\uff01-\uffdc]+")


def _compatible(match: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", match[0])


def _without_marks(text: str) -> str:
    """The text with spaces in the place of punctuation that nltk does not know."""
    return "".join(
        " " if _is_foreign_mark(mark) and not _is_inside_word(text, index) else mark
        for index, mark in enumerate(text)
    )


def _is_foreign_mark(character: str) -> bool:
    """Punctuation or an emoji, but not the symbols that people write inside words, such as a degree sign."""
    if character.isascii():
        return False
    category = unicodedata.category(character)
    return category.startswith("P") or (category in ("So", "Sk") and ord(character) >= FIRST_EMOJI)


def _is_inside_word(text: str, index: int) -> bool:
    before, after = text[index - 1 : index], text[index + 1 : index + 2]
    return text[index] in _INNER_MARKS and before.isalpha() and after.isalpha()


def _joined(words: Sequence[str]) -> Iterator[str]:
    """The words, with the characters of scripts without spaces joined to what stands beside them."""
    run = ""
    for number, word in enumerate(words):
        if number and not (is_spaceless(word) or is_spaceless(words[number - 1])):
            yield run
            run = ""
        run += word
    if run:
        yield run
