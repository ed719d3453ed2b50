"""Categories of COCO that the words of a caption name.

categories.json lists what people call the objects that COCO's annotators mark, in the singular; plurals are
derived. Words that too often mean something else are missing, such as "board", "light", "glove", "baseball",
"orange" or the "couple" in "a couple of dogs". The categories are those of Lin et al. 2014, "Microsoft COCO:
Common Objects in Context".
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import msgspec

_MAX_WORDS = 3  # of a name


class _Table(msgspec.Struct, frozen=True):
    """`names` are words by category, in which only the last word has a plural; `unrelated_phrases` contain
    such a word but do not name the object. `ages_of_animals` name a person, unless one of the `animals`
    follows."""

    names: dict[str, tuple[str, ...]]
    unrelated_phrases: tuple[str, ...]
    irregular_plurals: dict[str, str]
    animals: tuple[str, ...]
    ages_of_animals: tuple[str, ...]


@cache
def table() -> _Table:
    content = (files("captioner") / "objects" / "categories.json").read_bytes()
    return msgspec.json.decode(content, type=_Table)


@dataclass(frozen=True)
class Mention:
    """Words of a caption, from index `start` up to `stop`, that name a category."""

    category: str
    start: int
    stop: int


def mentions(words: Sequence[str]) -> Iterator[Mention]:
    """The words of a caption that name a category.

    The longest name counts: a "hot dog" is not a dog. Names of one category next to each other are one
    mention, such as "pickup truck", and so is a young or grown animal, such as a "baby elephant".
    """
    words = [word.lower() for word in words]
    last: Mention | None = None
    for mention in _names(words):
        if last is not None and last.stop == mention.start and _are_one(words, last, mention):
            last = Mention(mention.category, last.start, mention.stop)
            continue
        if last is not None:
            yield last
        last = mention
    if last is not None:
        yield last


def _are_one(words: Sequence[str], last: Mention, mention: Mention) -> bool:
    is_animals_age = last.stop - last.start == 1 and words[last.start] in table().ages_of_animals
    return last.category == mention.category or (is_animals_age and mention.category in table().animals)


def _names(words: Sequence[str]) -> Iterator[Mention]:
    start = 0
    while start < len(words):
        for stop in range(min(start + _MAX_WORDS, len(words)), start, -1):
            form = " ".join(words[start:stop])
            if form in _category_of():
                category = _category_of()[form]
                if category is not None:
                    yield Mention(category, start, stop)
                start = stop
                break
        else:
            start += 1


@cache
def _category_of() -> dict[str, str | None]:
    """The category of every form of every name; None for phrases that name nothing."""
    category_of: dict[str, str | None] = {
        form: category for category, names in table().names.items() for name in names for form in _forms(name)
    }
    return category_of | {form: None for phrase in table().unrelated_phrases for form in _forms(phrase)}


def _forms(name: str) -> tuple[str, str]:
    return name, _plural(name)


def _plural(name: str) -> str:
    if name in table().irregular_plurals:
        return table().irregular_plurals[name]
    if name.endswith(("s", "sh", "ch", "x")):
        return f"{name}es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"
