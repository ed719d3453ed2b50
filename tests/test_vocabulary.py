import json

import pytest
from nltk.tokenize.destructive import NLTKWordTokenizer
from nltk.tokenize.treebank import TreebankWordDetokenizer

from captioner.tokenize import detokenize, tokenize
from captioner.vocabulary import END, SPECIAL_TOKENS, START, UNK, Vocabulary
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


@pytest.fixture(scope="module")
def subwords() -> Vocabulary:
    return Vocabulary.build_subwords(real_captions(), size=300)


def test_subwords_reproduce_every_text_of_known_characters(subwords: Vocabulary) -> None:
    """With its case and punctuation, unseen words too; runs of spaces become one."""
    assert len(subwords) == 300
    assert subwords.words[:4] == SPECIAL_TOKENS
    for caption in [*real_captions()[:200], "Unseenwordish - Thing", ""]:
        tokens = subwords.encode(caption)
        assert tokens[0] == START
        assert tokens[-1] == END
        assert subwords.caption(tokens) == " ".join(caption.split())
        assert subwords.decode(tokens) == subwords.split(caption)


def test_characters_that_no_subword_has_are_unknown_and_left_out(subwords: Vocabulary) -> None:
    tokens = subwords.encode("a 犬 dog")
    assert UNK in tokens
    assert subwords.caption(tokens) == "a dog"


def test_frequent_words_are_single_subwords_and_rare_ones_are_several(subwords: Vocabulary) -> None:
    assert subwords.split("a man") == ["▁a", "▁man"]
    assert len(subwords.split("xylophonist")) > 3


def test_subwords_are_stored_as_json_with_their_model(subwords: Vocabulary) -> None:
    again = Vocabulary.from_json(subwords.to_json())
    assert again == subwords
    assert again.encode("A man rides.") == subwords.encode("A man rides.")
    assert Vocabulary.build_subwords(real_captions(), size=300).to_json() == subwords.to_json()


def test_subwords_that_cannot_be_learned_or_do_not_match_are_refused(subwords: Vocabulary) -> None:
    with pytest.raises(ValueError, match="5 subwords are too few for texts with 11 different characters"):
        Vocabulary.build_subwords(["abcdefghijk"], size=5)
    with pytest.raises(ValueError, match="cannot read the vocabulary's sentencepiece model"):
        Vocabulary(subwords.words, b"nonsense")
    with pytest.raises(ValueError, match="the words must be exactly the pieces of the sentencepiece model"):
        Vocabulary((*subwords.words[:-1], "other"), subwords.subwords)


def test_invalid_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="starts with <pad>"):
        Vocabulary(("a", "b"))
    with pytest.raises(ValueError, match="'a' is repeated"):
        Vocabulary((*SPECIAL_TOKENS, "a", "a"))


def real_captions() -> list[str]:
    by_picture = json.loads((ROOT / "tests" / "fixtures" / "coco_val2017_captions.json").read_text())
    return [caption for captions in by_picture.values() for caption in captions]


def test_words_of_plain_captions_are_those_of_nltk() -> None:
    """The shortcut for plain captions must give the same: 1,000 real captions and special cases."""
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
    """The shortcut for plain words must give the same: real captions, and words that nltk joins."""
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
