"""BLEU, ROUGE-L, CIDEr-D and METEOR of captions as printed.

The scorers are pycocoevalcap's, which papers use. Its tokenizer and METEOR need Java; the tokenizer's rules
for captions are reproduced with nltk's Penn Treebank tokenizer, and METEOR is computed if Java is present,
otherwise reported as not computed.
"""

import re
import subprocess
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from nltk.tokenize.destructive import NLTKWordTokenizer
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge

from captioner.errors import CaptionerError, abbreviate, reject_string
from captioner.tokenize import FIRST_EMOJI, normalised, split_spaceless

_NAMED = 10  # pictures named in an error

_TOKENIZER = NLTKWordTokenizer()

# What pycocoevalcap removes after tokenizing. Its "-LRB-" and the like never match, because the words
# are lower case by then: brackets count as words there, and so here.
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Abbreviations whose full stop the Stanford tokenizer keeps, as far as captions use them.
_ABBREVIATION = re.compile(
    r"(?:[a-z]\.){2,}|(?:mr|mrs|ms|dr|prof|jr|sr|st|ave|blvd|rd|ky|mt|ft|vs|etc|inc|co|corp|no|apt)\."
)
_DOTTED_WORD = re.compile(r"(?<!\S)(\S*[^\s.])\.+(?=[\"']*(?!\S))")
_LEADING_MARKS = re.compile(r"(?<!\S)(?:\.+|-(?=[a-z]))")
_TRAILING_MARKS = re.compile(r"(?<=\w)([-/])(?!\S)")
_GLUED = re.compile(r"(?<=\d:\d\d)(?=[ap]m\b)|(?<=\w)(?==)|(?<==)(?=\w)")


# Typographic characters, as the Stanford tokenizer takes them, but for two that our captions have from a
# keyboard: an apostrophe inside a word that is not one of English's short forms, and the hyphens.
_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"
_TYPED_APOSTROPHE = re.compile(rf"(?<=\w){_APOSTROPHE}(?=\w)|{_APOSTROPHE}(?=(?:s|m|d|re|ve|ll)(?!\w))")
_REMOVED = f"{_APOSTROPHE}\N{LEFT SINGLE QUOTATION MARK}"
_REMOVED += "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
_REMOVED += "\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"
_REMOVED += "\N{EN DASH}\N{EM DASH}\N{HORIZONTAL ELLIPSIS}"
# Punctuation of other languages, which our captions do not have.
_REMOVED += "\N{INVERTED QUESTION MARK}\N{INVERTED EXCLAMATION MARK}\N{DEVANAGARI DANDA}"
_REMOVED += "\N{ARABIC COMMA}\N{ARABIC SEMICOLON}\N{ARABIC QUESTION MARK}"
_REMOVED += "".join(map(chr, range(0x3000, 0x3004))) + "".join(map(chr, range(0x3008, 0x3012)))
_REMOVED += "\uff01\uff0c\uff0e\uff1a\uff1b\uff1f"
_HYPHENS = "\N{HYPHEN}\N{NON-BREAKING HYPHEN}"
_TYPOGRAPHIC = str.maketrans(
    {
        **dict.fromkeys(_REMOVED, " "),
        **dict.fromkeys("\N{ZERO WIDTH NO-BREAK SPACE}\N{SOFT HYPHEN}\N{VARIATION SELECTOR-16}", ""),
        "\N{ZERO WIDTH SPACE}": " ",
        **dict.fromkeys(_HYPHENS, "-"),
        "\N{POUND SIGN}": " # ",
        "\N{EURO SIGN}": " $ ",
    }
)


def ptb_tokenize(caption: str) -> list[str]:
    """Lower-case Penn Treebank words without punctuation, as pycocoevalcap's Java tokenizer gives them.

    Unlike that, which takes a whole sentence in a script without spaces for a word, each character is a word.
    """
    text = caption.lower()
    if not text.isascii():
        text = _as_typed(text)
    text = _DOTTED_WORD.sub(_split_full_stop, " ".join(text.split()))
    text = _GLUED.sub(" ", _TRAILING_MARKS.sub(r" \1", _LEADING_MARKS.sub("", text)))
    words = _TOKENIZER.tokenize(text + " .", convert_parentheses=True)
    return [word for word in map(str.lower, words) if word not in _PUNCTUATION]


def _as_typed(text: str) -> str:
    text = _TYPED_APOSTROPHE.sub("'", normalised(text)).translate(_TYPOGRAPHIC)
    return split_spaceless("".join(map(_space_out, text)))


def _space_out(character: str) -> str:
    """Marks and symbols are words of their own; pictographs are removed."""
    if character.isascii() or unicodedata.category(character)[0] not in "PS":
        return character
    return f" {character} " if ord(character) < FIRST_EMOJI else " "


def _split_full_stop(match: re.Match[str]) -> str:
    is_initial = len(match[1]) == 1 and match[1] != "i" and match.end() < len(match.string)
    return match[0] if is_initial or _ABBREVIATION.fullmatch(match[1] + ".") else f"{match[1]} ."


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Corpus scores in percent. None was not computed: `meteor` because Java is missing, `cider` because
    there is a single picture, whose words all have a document frequency of 1 and so a weight of 0."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider: float | None
    meteor: float | None

    def named(self) -> dict[str, str]:
        """The scores as papers name and print them."""
        bleu = (self.bleu_1, self.bleu_2, self.bleu_3, self.bleu_4)
        return {
            "BLEU-1..4": " ".join(f"{value:.1f}" for value in bleu),
            "METEOR": "not computed (needs Java)" if self.meteor is None else f"{self.meteor:.1f}",
            "ROUGE-L": f"{self.rouge_l:.1f}",
            "CIDEr": "not computed (needs several pictures)" if self.cider is None else f"{self.cider:.1f}",
        }

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.named().items())


def score_captions(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], *, with_meteor: bool = True
) -> Scores:
    """Score one caption for each picture against its references, both by picture id.

    Raises:
        CaptionerError: a picture has a caption but no reference, or references but no caption.
    """
    for image_id, texts in references.items():
        reject_string(texts, f"references[{image_id!r}]")
    check_complete(captions, references)
    check_references(references)
    if not captions:
        raise CaptionerError("there are no captions to score")
    truths = {
        image_id: [" ".join(ptb_tokenize(text)) for text in texts] for image_id, texts in references.items()
    }
    _refuse(
        "have references without a word", {image_id for image_id, texts in truths.items() if not any(texts)}
    )
    results = {image_id: [" ".join(ptb_tokenize(captions[image_id]))] for image_id in references}
    bleu, _ = Bleu(4).compute_score(truths, results, verbose=0)
    rouge_l, _ = Rouge().compute_score(truths, results)
    cider = 100 * float(Cider().compute_score(truths, results)[0]) if len(truths) > 1 else None
    meteor = 100 * _meteor(truths, results) if with_meteor and has_java() else None
    bleu_1, bleu_2, bleu_3, bleu_4 = (100 * float(value) for value in bleu)
    return Scores(
        bleu_1=bleu_1,
        bleu_2=bleu_2,
        bleu_3=bleu_3,
        bleu_4=bleu_4,
        rouge_l=100 * float(rouge_l),
        cider=cider,
        meteor=meteor,
    )


@dataclass(frozen=True)
class ScoresByDataset:
    """Scores of the captions of each data set, each with its own document frequencies."""

    by_dataset: Mapping[str, Scores]

    @property
    def mean(self) -> Scores:
        """The mean over the data sets, whatever their sizes."""
        each: list[dict[str, Any]] = [vars(scores) for scores in self.by_dataset.values()]
        columns = {name: [scores[name] for scores in each] for name in each[0]}
        means: dict[str, Any] = {
            name: None if None in values else sum(values) / len(values) for name, values in columns.items()
        }
        return Scores(**means)

    def entries(self) -> dict[str, dict[str, float | None]]:
        """The scores for logs: the mean as `dev` and, of several, each data set's as `dev/name`."""
        several = self.by_dataset.items() if len(self.by_dataset) > 1 else ()
        return {"dev": asdict(self.mean), **{f"dev/{name}": asdict(scores) for name, scores in several}}

    def __str__(self) -> str:
        if len(self.by_dataset) == 1:
            return str(self.mean)
        return "; ".join(f"{name}: {scores}" for name, scores in self.by_dataset.items())


def score_by_dataset(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    dataset_of: Mapping[str, str],
    with_meteor: bool = True,
) -> ScoresByDataset:
    """As `score_captions`, a data set at a time; `dataset_of` has its name by picture id."""
    check_complete(captions, references)
    names = dict.fromkeys(dataset_of[image_id] for image_id in references)
    return ScoresByDataset(
        {
            name: score_captions(
                {image_id: text for image_id, text in captions.items() if dataset_of[image_id] == name},
                {image_id: texts for image_id, texts in references.items() if dataset_of[image_id] == name},
                with_meteor=with_meteor,
            )
            for name in names
        }
    )


def check_complete(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    """Raises: CaptionerError, naming the pictures that are in one mapping only."""
    advice = "caption them, or leave their references out"
    _refuse("have no caption", references.keys() - captions.keys(), advice)
    _refuse("have a caption but no reference", captions.keys() - references.keys())


def check_references(references: Mapping[str, Sequence[str]]) -> None:
    """Raises: CaptionerError, naming the pictures without a reference."""
    _refuse("have no reference", {image_id for image_id, texts in references.items() if not texts})


def _refuse(complaint: str, image_ids: Set[str], advice: str = "") -> None:
    if image_ids:
        named = abbreviate(sorted(image_ids), _NAMED)
        raise CaptionerError(f"{len(image_ids):,} pictures {complaint}: {named}{advice and '; '}{advice}")


@lru_cache(maxsize=1)
def has_java() -> bool:
    """Whether METEOR, a Java program, can run here: some systems have a `java` that does nothing."""
    try:
        return subprocess.run(["java", "-version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _meteor(truths: dict[str, list[str]], results: dict[str, list[str]]) -> float:
    scorer = Meteor()
    score, _ = scorer.compute_score(truths, results)
    for pipe in (scorer.meteor_p.stdout, scorer.meteor_p.stderr):  # the scorer closes only its input
        pipe.close()
    return float(score)
