import json

import pytest
from nltk.tokenize.destructive import NLTKWordTokenizer
from nltk.tokenize.treebank import TreebankWordDetokenizer

from captioner.vocabulary import END, SPECIAL_TOKENS, START, UNK, Vocabulary, detokenize, tokenize
from tests.conftest import ROOT


def test_tokens_are_lower_case_words_without_punctuation() -> None:
    assert tokenize('A dog, in a "red" coat , jumps !') == ["a", "dog", "in", "a", "red", "coat", "jumps"]


def test_apostrophes_and_hyphens_survive_the_round_trip() -> None:
    for caption in ("the dog's tail", "a t-shirt that doesn't fit", "two 10-year-old boys"):
        assert detokenize(tokenize(caption)) == caption


def test_build_keeps_words_that_occur_often_enough() -> None:
    vocabulary = Vocabulary.build(["a dog runs", "a dog sits", "a cat"], min_count=2)
    assert vocabulary.words == (*SPECIAL_TOKENS, "a", "dog")


def test_encode_marks_start_end_and_unknown_words() -> None:
    vocabulary = Vocabulary.build(["a dog"], min_count=1)
    assert vocabulary.encode("A zebra.") == [START, 4, UNK, END]
    assert vocabulary.decode([START, 4, UNK, 5, END]) == ["a", "dog"]


def test_json_round_trip_is_exact() -> None:
    vocabulary = Vocabulary.build(["ein Hund läuft", "日本"], min_count=1)
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


def test_unsound_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="begins with <pad>"):
        Vocabulary(("a", "b"))
    with pytest.raises(ValueError, match="'a' is there again"):
        Vocabulary((*SPECIAL_TOKENS, "a", "a"))


def real_captions() -> list[str]:
    by_picture = json.loads((ROOT / "tests" / "data" / "coco_val2017_captions.json").read_text())
    return [caption for captions in by_picture.values() for caption in captions]


def test_words_of_plain_captions_are_those_of_nltk() -> None:
    """The short way for plain captions must not be another way: 1,000 real captions and the odd cases."""
    odd = [
        "I cannot see. ",
        "gonna, gotta, wanna go",
        "x-cannot",
        "a red,white,and blue kite",
        "a half-eaten , well-done steak .",
        " A  dog\truns\n",
        "3 dogs. 4 cats.",
        "10,000 people",
        "dogs..",
        "o'clock",
        "can't",
        "-",
        "",
        "naïve café",
    ]
    tokenizer = NLTKWordTokenizer()
    for caption in [*odd, *real_captions()]:
        expected = [word for word in tokenizer.tokenize(caption.lower()) if any(map(str.isalnum, word))]
        assert tokenize(caption) == expected, caption


def test_captions_are_joined_as_nltk_joins_them() -> None:
    """The short way for plain words must not be another way: real captions, and words that nltk joins."""
    odd = [
        "i can not see",
        "gon na and got ta",
        "lem me wan na",
        "gim me more",
        "it 's a man 's dog",
        "do n't",
        "",
    ]
    detokenizer = TreebankWordDetokenizer()
    for words in [text.split() for text in odd] + [tokenize(caption) for caption in real_captions()]:
        assert detokenize(words) == detokenizer.detokenize(words), words
