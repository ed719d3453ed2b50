"""Tokenising takes time linear in the length, on any text."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.evaluation.metrics import ptb_tokenize
from captioner.tokenize import detokenize, tokenize

LENGTH = 30_000
MARKS = "ab1 \t\u00a0.,;:!?-'\"`()[]{}<>$@%&#/\\=\u2019\u201c\u2026\u3002"


@pytest.fixture(autouse=True)
def no_endless_wait() -> Iterator[None]:
    """A text of this length takes a tenth of a second; what grows with its square would take hours."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def test_doubled_blanks_before_a_mark_take_no_longer_than_others() -> None:
    text = "a dog  runs  " * 2_000 + "!"
    assert tokenize(text) == ["a", "dog", "runs"] * 2_000


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.sampled_from(MARKS), max_size=4),
    st.text(st.sampled_from(MARKS), min_size=1, max_size=5),
    st.text(st.sampled_from(MARKS), max_size=3),
)
def test_repetitions_of_any_short_text_are_tokenised_at_once(start: str, repeated: str, end: str) -> None:
    text = start + repeated * (LENGTH // len(repeated)) + end
    words = tokenize(text)
    assert sum(map(len, words)) <= len(text) + len(words)
    ptb_tokenize(text)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["a", "dog", "t-shirt", "2", ",", "and"]), max_size=12), st.data())
def test_plain_captions_have_the_words_that_nltk_gives(words: list[str], data: st.DataObject) -> None:
    blanks = data.draw(st.lists(st.sampled_from([" ", "  ", "\t"]), min_size=len(words), max_size=len(words)))
    text = "".join(f"{word}{blank}" for word, blank in zip(words, blanks, strict=True))
    spelled = tokenize(f"{text}x-y .")  # a plain caption
    assert spelled == [*(word for word in words if word != ","), "x-y"]
    assert tokenize(f"{text} ' x-y .") == spelled  # the quote takes it through nltk
    assert tokenize(detokenize(spelled)) == spelled


@pytest.mark.parametrize(
    ("typed", "plain"),
    [
        ("the dog\u2019s tail isn\u2019t long", "the dog's tail isn't long"),
        ("\u201ca red hat\u201d", '"a red hat"'),
        ("a dog \u2013 brown \u2014 runs\u2026", "a dog - brown - runs..."),
        ("a well\u2011known caf\u00e9", "a well-known caf\u00e9"),
        ("a cafe\u0301", "a caf\u00e9"),  # composed and decomposed
        ("it\u00b4s a dog", "it's a dog"),
        ("\ufeffa\u00a0dog\u200bruns", "a dog runs"),
        ("\uff15 \uff44\uff4f\uff47\uff53", "5 dogs"),
        ("\u00bfd\u00f3nde est\u00e1 el perro?", "d\u00f3nde est\u00e1 el perro"),
        ("\u00abl\u2019homme d\u2019un chien\u00bb", "l'homme d'un chien"),
        (
            "\u0915\u0941\u0924\u094d\u0924\u093e \u0939\u0948\u0964",
            "\u0915\u0941\u0924\u094d\u0924\u093e \u0939\u0948",
        ),
    ],
)
def test_typographic_characters_count_as_those_of_a_keyboard(typed: str, plain: str) -> None:
    assert tokenize(typed) == tokenize(plain)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("l'homme d'un chien", ["l'homme", "d'un", "chien"]),
        ("ein M\u00e4dchen l\u00e4uft", ["ein", "m\u00e4dchen", "l\u00e4uft"]),
        ("\u5c0f\u72d7\u5728\u8dd1\u3002", ["\u5c0f", "\u72d7", "\u5728", "\u8dd1"]),
        ("\u7a7fT\u6064\u7684\u4eba", ["\u7a7f", "t", "\u6064", "\u7684", "\u4eba"]),
        ("\u30a2\u30a4\u30b9", ["\u30a2", "\u30a4", "\u30b9"]),
        (
            "\u0e2a\u0e38\u0e19\u0e31\u0e02",
            ["\u0e2a\u0e38", "\u0e19\u0e31", "\u0e02"],
        ),  # vowels stay with their consonant
        ("\uac1c\uac00 \ub2ec\ub9b0\ub2e4", ["\uac1c\uac00", "\ub2ec\ub9b0\ub2e4"]),  # Korean has spaces
    ],
)
def test_words_of_other_languages(caption: str, words: list[str]) -> None:
    assert tokenize(caption) == words
    assert tokenize(detokenize(words)) == words


def test_scripts_without_spaces_are_written_without_them() -> None:
    assert detokenize(["\u5c0f", "\u72d7", "\u5728", "\u8dd1"]) == "\u5c0f\u72d7\u5728\u8dd1"
    assert detokenize(["a", "dog", "'s", "tail"]) == "a dog's tail"


def test_capitals_are_kept_on_request() -> None:
    assert tokenize("Ein Hund in Berlin.", keep_case=True) == ["Ein", "Hund", "in", "Berlin"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.sampled_from("abcXYZ \u00e9\u00df\u5c0f\u72d7\u30a2\u0e2a\u0e38\u0915\u093e5"), max_size=30)
)
def test_printed_captions_have_the_words_they_were_made_of(text: str) -> None:
    words = tokenize(text)
    assert tokenize(detokenize(words)) == words
