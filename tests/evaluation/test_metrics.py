import json
import warnings

import pytest

from captioner.errors import CaptionerError
from captioner.evaluation import metrics
from captioner.evaluation.metrics import has_java, ptb_tokenize, score_captions
from captioner.tokenize import detokenize, tokenize
from tests.conftest import ROOT

CAPTIONS_FILE = ROOT / "tests" / "fixtures" / "coco_val2017_captions.json"
needs_java = pytest.mark.skipif(not has_java(), reason="the reference tokenizer needs Java")


def real_captions() -> dict[str, list[str]]:
    """COCO val2017 captions (CC BY 4.0) of 200 pictures, as the annotation file has them."""
    return json.loads(CAPTIONS_FILE.read_text())


def java_tokens(captions: dict[str, list[str]]) -> dict[str, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        return PTBTokenizer().tokenize(
            {name: [{"caption": text} for text in texts] for name, texts in captions.items()}
        )


@needs_java
def test_tokens_equal_those_of_the_java_tokenizer_on_real_captions() -> None:
    captions = real_captions()
    expected = java_tokens(captions)
    for name, texts in captions.items():
        assert [" ".join(ptb_tokenize(text)) for text in texts] == expected[name]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog's tail.", "a dog 's tail"),
        ('A sign reads "stop."', "a sign reads stop"),
        ("It doesn't fit; she can't see", "it does n't fit she ca n't see"),
        ("A man in a black-and-white t-shirt...", "a man in a black-and-white t-shirt"),
        (
            "A crowd in Washington D.C. waits on 8th Ave. at 5:54pm",
            "a crowd in washington d.c. waits on 8th ave. at 5:54 pm",
        ),
        ("Snow falls. The road is white", "snow falls the road is white"),
        ("Boys (one in red) play", "boys -lrb- one in red -rrb- play"),
        ("", ""),
    ],
)
def test_tokens_follow_the_stanford_rules(caption: str, expected: str) -> None:
    assert " ".join(ptb_tokenize(caption)) == expected


TYPOGRAPHIC = (
    "the dog\u2019s tail isn\u2019t long",
    "a man\u2019s \u201cred\u201d hat",
    "it\u2018s a \u2018quoted\u2019 word",
    "a dog \u2013 brown\u2014runs\u2026",
    "a well\u2011known caf\u00e9",
    "the dogs\u2019 tails, dog\u2019",
    "l\u2019homme d\u2019un chien",
    "\u00abbonjour\u00bb \u201eHund\u201c",
    "a dog\u2032s 6\u2033 leash for \u20ac3 or \u00a35",
    "10\u00b0C \u2022 a dog\u2122",
    "a\u00a0dog\u200b runs",
    "\u043a\u043e\u0442 \u0441\u0438\u0434\u0438\u0442.",
    "can\u2019t won\u2019t we\u2019re i\u2019m they\u2019ve she\u2019ll he\u2019d",
    "\U0001f600 a smile",
)


@needs_java
def test_tokens_equal_those_of_the_java_tokenizer_on_typographic_characters() -> None:
    expected = java_tokens({text: [text] for text in TYPOGRAPHIC})
    for text in TYPOGRAPHIC:
        typed = expected[text][0].replace("\u2019", "'").replace("\u2011", "-")  # ours are as on a keyboard
        assert " ".join(ptb_tokenize(text)) == typed


def test_paraphrases_in_a_script_without_spaces_share_words() -> None:
    """A person rides a horse; a person is riding a white horse."""
    references = {"1": ["\u4e00\u4e2a\u4eba\u5728\u9a91\u9a6c\u3002"], "2": ["\u72ac\u304c\u8d70\u308b"]}
    captions = {"1": "\u4e00\u4e2a\u4eba\u9a91\u7740\u767d\u9a6c", "2": "\u72ac\u304c\u8d70\u308b"}
    scores = score_captions(captions, references, with_meteor=False)
    assert scores.bleu_1 == pytest.approx(100 * (5 + 4) / (7 + 4))


def test_a_single_picture_has_no_cider() -> None:
    scores = score_captions({"1": "a dog"}, {"1": ["a dog"]}, with_meteor=False)
    assert scores.cider is None
    assert scores.named()["CIDEr"] == "not computed (needs several pictures)"


@needs_java
def test_scores_equal_pycocoevalcap_with_its_java_tokenizer() -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    captions = real_captions()
    results = {name: texts[0] for name, texts in captions.items()}
    references = {name: texts[1:] for name, texts in captions.items()}
    truths = java_tokens(references)
    candidates = java_tokens({name: [text] for name, text in results.items()})
    scores = score_captions(results, references, with_meteor=False)
    bleu, _ = Bleu(4).compute_score(truths, candidates, verbose=0)
    assert [scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4] == [100 * value for value in bleu]
    assert scores.rouge_l == 100 * Rouge().compute_score(truths, candidates)[0]
    assert scores.cider == 100 * Cider().compute_score(truths, candidates)[0]


@needs_java
@pytest.mark.long
def test_meteor_equals_that_of_captions_from_the_java_tokenizer() -> None:
    captions = real_captions()
    references = {name: texts[1:] for name, texts in captions.items()}
    results = {name: texts[0] for name, texts in captions.items()}
    candidates = java_tokens({name: [text] for name, text in results.items()})
    expected = 100 * metrics._meteor(java_tokens(references), candidates)
    assert score_captions(results, references).meteor == expected


def test_captions_equal_to_a_reference_have_perfect_scores() -> None:
    captions = real_captions()
    scores = score_captions({name: texts[2] for name, texts in captions.items()}, captions, with_meteor=False)
    assert scores.bleu_4 == pytest.approx(100)
    assert scores.rouge_l == pytest.approx(100)


def test_without_java_meteor_is_not_computed_rather_than_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "has_java", lambda: False)
    scores = score_captions({"1": "a dog runs"}, {"1": ["a dog runs fast"]})
    assert scores.meteor is None
    assert "METEOR not computed (needs Java)" in str(scores)


def test_pictures_without_caption_or_reference_are_reported() -> None:
    with pytest.raises(CaptionerError, match="1 pictures have no caption: b"):
        score_captions({"a": "x"}, {"a": ["x"], "b": ["y"]})
    with pytest.raises(CaptionerError, match="1 pictures have no reference: a"):
        score_captions({"a": "x"}, {"a": []})
    with pytest.raises(
        CaptionerError, match=r"12 pictures have a caption but no reference: 0, 1, 10, .* and 2 more"
    ):
        score_captions({str(number): "x" for number in range(12)}, {})
    with pytest.raises(CaptionerError, match="no captions to score"):
        score_captions({}, {})


@pytest.mark.parametrize(
    "text",
    [
        "l\u2019homme et son t\u2011shirt\u2026",
        "\u0e19\u0e49\u0e33\u0e43\u0e2a",  # Thai, with sara am
        "\uff12\u4eba\u306e\u72ac\u3002",
        "c\u00e3\u0301i b\u00e0n",  # Vietnamese, partly decomposed
        "\u0915\u0941\u0924\u094d\u0924\u093e \u0939\u0948\u0964",
        "\u00bfd\u00f3nde est\u00e1 el perro?",
        "foto\u00adgraf\u200bfoobar",
        "A dog\U0001f415 runs \u2764\ufe0f",
    ],
)
def test_captions_as_printed_have_the_words_of_their_references(text: str) -> None:
    """A model that writes a reference word for word gets its full score, in every script."""
    printed = detokenize(tokenize(text))
    assert ptb_tokenize(printed) == ptb_tokenize(text)
    assert tokenize(printed) == tokenize(text)
