"""The page that `train.py check` prints about a data set."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from captioner.records import CaptionedImage, SplitName
from captioner.tokenize import are_spaceless, tokenize
from captioner.training.fitting import LEAST_COVERAGE, caption_limit, coverage
from captioner.training.recipe import TrainingConfig
from captioner.vocabulary import Vocabulary

from .checks import SHOWN, Problems, decode_pictures, find_problems


def check(
    records: Sequence[CaptionedImage],
    unreadable: Mapping[SplitName, Sequence[str]],
    *,
    training: TrainingConfig | None = None,
) -> tuple[str, bool]:
    """A page about the data set, and whether it is valid for training. Every picture is decoded.

    `unreadable` says why records of a split could not be read; test is not needed. `training` says how
    captions are taken, by default as in the recipes.
    """
    training = TrainingConfig() if training is None else training
    words_of = {
        split: [tokenize(text, keep_case=training.keep_case) for text in _captions(records, split)]
        for split in _splits(records)
    }
    problems = find_problems(records)
    found, shared = decode_pictures(records)
    problems |= found
    for split in ("train", "dev"):
        if split not in words_of:
            problems[f"pictures are in {split}"] = []
    for split, reasons in unreadable.items():
        if split != "test":
            problems[f"data sets whose {split} cannot be read"] = list(reasons)
    vocabulary = Vocabulary.build(
        _captions(records, "train"), min_count=training.min_count, keep_case=training.keep_case
    )
    share = coverage(_captions(records, "train"), vocabulary)
    if "train" in words_of and share < LEAST_COVERAGE:
        problems[f"use: the vocabulary has {share:.1%} of the words of train; lower --min-count"] = []
    lines = [
        *_counts(records, words_of),
        *(f"{split:<6} not read: {reason}" for split, reasons in unreadable.items() for reason in reasons),
        "",
        *_cuts(words_of, training),
        *_coverage(words_of, vocabulary, training),
        "",
        *_notes(shared),
        *_problem_lines(problems),
    ]
    return "\n".join(lines), not problems


def _splits(records: Iterable[CaptionedImage]) -> list[SplitName]:
    return list(dict.fromkeys(record.split for record in records))


def _captions(records: Iterable[CaptionedImage], split: SplitName) -> list[str]:
    return [text for record in records if record.split == split for text in record.captions]


def _counts(records: Sequence[CaptionedImage], words_of: dict[SplitName, list[list[str]]]) -> list[str]:
    lines = [
        f"{'split':<6} {'pictures':>9} {'captions':>9}   words per caption: minimum, median, 95 %, maximum"
    ]
    for split, captions in words_of.items():
        pictures = sum(record.split == split for record in records)
        lengths = [len(words) for words in captions] or [0]
        least, median, high, most = np.percentile(lengths, [0, 50, 95, 100])
        spread = f"{least:.0f}, {median:.0f}, {high:.0f}, {most:.0f}"
        lines.append(f"{split:<6} {pictures:>9,} {len(captions):>9,}   {spread}")
    if any(record.dataset for record in records):
        lines += ["", *_counts_by_dataset(records)]
    return lines


def _counts_by_dataset(records: Sequence[CaptionedImage]) -> list[str]:
    lines = [f"{'data set':<16} {'weight':>6} {'pictures: train':>16} {'dev':>7} {'test':>7}"]
    for dataset in dict.fromkeys(record.dataset for record in records):
        own = [record for record in records if record.dataset == dataset]
        train, dev, test = (sum(one.split == split for one in own) for split in ("train", "dev", "test"))
        lines.append(f"{dataset:<16} {own[0].weight:>6g} {train:>16,} {dev:>7,} {test:>7,}")
    return lines


def _cuts(words_of: dict[SplitName, list[list[str]]], training: TrainingConfig) -> list[str]:
    """What is said about the units and the length of captions."""
    train = words_of.get("train", [])
    lengths = [len(words) for words in train]
    limit = training.max_caption_words or caption_limit(lengths)
    num_cut = sum(length > limit for length in lengths)
    lines = [f"captions of train are cut after {limit} words; {num_cut:,} are longer (--max-caption-words)"]
    if are_spaceless(train):
        lines.insert(0, "captions are in a script without spaces: each of its characters counts as a word")
    return lines


def _coverage(
    words_of: dict[SplitName, list[list[str]]], vocabulary: Vocabulary, training: TrainingConfig
) -> list[str]:
    known = set(vocabulary.words)
    lines = [
        f"vocabulary: {len(known):,} words (4 of them special) occur at least {training.min_count} times in "
        "train"
    ]
    for split, captions in words_of.items():
        counts = Counter(word for words in captions for word in words)
        total = sum(counts.values())
        covered = sum(count for word, count in counts.items() if word in known)
        whole = sum(all(word in known for word in words) for words in captions)
        lines.append(
            f"  covers {covered / max(total, 1):.2%} of the words of {split} "
            f"and {whole / max(len(captions), 1):.1%} of its captions wholly"
        )
    return lines


def _notes(repeated: Sequence[str]) -> list[str]:
    """What is worth knowing and is no problem."""
    if not repeated:
        return []
    return [
        f"{len(repeated):,} training pictures are in two data sets, and come twice in an epoch:",
        *_listed(repeated),
        "",
    ]


def _listed(names: Sequence[str]) -> list[str]:
    more = [f"    and {len(names) - SHOWN:,} more"] if len(names) > SHOWN else []
    return [*(f"    {name}" for name in names[:SHOWN]), *more]


def _problem_lines(problems: Problems) -> list[str]:
    if not problems:
        return ["valid: no problems were found"]
    lines = ["not valid:"]
    for kind, names in problems.items():
        lines.append(f"  {len(names) or 'no'} {kind}" + (":" if names else ""))
        lines += _listed(names)
    return lines
