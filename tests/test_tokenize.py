"""Tokenising takes time linear in the length, on any text."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from captioner.evaluation.metrics import ptb_tokenize
from captioner.vocabulary import detokenize, tokenize

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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
