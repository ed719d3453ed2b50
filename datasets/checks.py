"""Checks of a data set before training."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from captioner.errors import CaptionerError, ImageError, abbreviate
from captioner.images.prefetch import prefetch_batches
from captioner.images.reading import load_image
from captioner.images.sources import StoredPicture
from captioner.records import CaptionedImage, SplitName
from captioner.tokenize import are_spaceless, tokenize
from captioner.training.fitting import LEAST_COVERAGE, caption_limit, coverage
from captioner.training.recipe import TrainingConfig
from captioner.vocabulary import Vocabulary

SHOWN = 10
"""Names listed for each problem."""

MAX_CAPTION_LENGTH = 10_000
"""Characters; anything longer is not a caption."""

_DIGEST_PX = 512  # of a side; larger JPEGs are compared at a fraction of their size
_GLANCE_PX = 32  # of a side, enough to see that a picture can be decoded

_logger = logging.getLogger(__name__)

Problems = dict[str, list[str]]
"""Names of pictures by the kind of problem."""


def find_problems(records: Sequence[CaptionedImage]) -> Problems:
    """Name pictures that are missing, repeated, in two splits or without captions, and captions that are
    empty or endless. No picture is opened."""
    problems: Problems = defaultdict(list)
    ids: set[tuple[str, str]] = set()
    first_of_id: dict[str, CaptionedImage] = {}
    split_of_source: dict[StoredPicture, str] = {}
    for record in records:
        if not exists(record.source):
            problems["pictures are missing"].append(str(record.source))
        if not record.captions:
            problems["pictures have no caption"].append(record.image_id)
        for caption in record.captions:
            if len(caption) > MAX_CAPTION_LENGTH:
                kind = f"captions have more than {MAX_CAPTION_LENGTH:,} characters"
                problems[kind].append(f"{record.image_id} ({len(caption):,})")
            elif not any(character.isalnum() for character in caption):
                problems["captions are empty"].append(f"{record.image_id} ({caption!r})")
        if (record.split, record.image_id) in ids:
            problems["picture ids are repeated"].append(record.image_id)
        ids.add((record.split, record.image_id))
        other = split_of_source.setdefault(record.source, record.split)
        if other != record.split:
            problems["pictures are in two splits"].append(f"{record.source} ({other} and {record.split})")
        elif first_of_id.setdefault(record.image_id, record).split != record.split:
            first = first_of_id[record.image_id]
            # A number may be that of different pictures, if each split counts its own from 1.
            if first.file_name == record.file_name or not record.image_id.isdigit():
                found = f"{record.image_id} ({first.split} and {record.split})"
                problems["picture ids are in two splits"].append(found)
    return dict(problems)


def exists(source: StoredPicture) -> bool:
    """Whether the picture's file exists; what is inside one comes from its own index."""
    try:
        return not isinstance(source, Path) or source.is_file()
    except OSError:  # a name that is too long, or a folder without permission
        return False


def leave_out_invalid(records: Sequence[CaptionedImage]) -> list[CaptionedImage]:
    """The records without pictures that cannot be read, captions without a letter, and pictures without a
    caption. What is left out is counted and named in the log."""
    unreadable = {error.file: error for error in unreadable_pictures(records)}
    problems = list(map(str, unreadable.values()))
    kept: list[CaptionedImage] = []
    for record in records:
        if str(record.source) in unreadable:
            continue
        captions = tuple(text for text in record.captions if _is_caption(text))
        if len(captions) < max(len(record.captions), 1):
            what = "a caption" if captions else "the picture, which has no caption"
            problems.append(f"{record.image_id}: {what}")
        if captions:
            kept.append(replace(record, captions=captions))
    if problems:
        _logger.info("left out %s: %s", f"{len(problems):,}", abbreviate(problems, SHOWN))
    return kept


def require_readable(records: Sequence[CaptionedImage]) -> None:
    """Refuse pictures that cannot be read, all at once, before any work is done on the others.

    Raises:
        CaptionerError: naming some of them.
    """
    errors = list(map(str, unreadable_pictures(records)))
    if errors:
        raise CaptionerError(
            f"{len(errors):,} pictures cannot be read: {abbreviate(errors, SHOWN)}. Fix or remove these, or "
            "leave them out with --skip-invalid"
        )


def unreadable_pictures(records: Sequence[CaptionedImage]) -> list[ImageError]:
    """Decode every picture, a large JPEG at a fraction of its size."""
    load = partial(load_image, enough_px=_GLANCE_PX)
    batches = prefetch_batches((record.source for record in records), load, batch_size=64)
    results = (result for batch in batches for _, result in batch)
    bar = tqdm(results, total=len(records), desc="checking", unit=" pictures", delay=2)
    return [result for result in bar if isinstance(result, ImageError)]


def _is_caption(text: str) -> bool:
    return len(text) <= MAX_CAPTION_LENGTH and any(character.isalnum() for character in text)


def require_valid(records: Sequence[CaptionedImage]) -> None:
    """Refuse records with problems, and splits without pictures.

    Raises:
        CaptionerError: naming the first of each kind.
    """
    for split in ("train", "dev"):
        if not any(record.split == split for record in records):
            raise CaptionerError(f"there are no {split} pictures; `train.py check` shows what there is")
    problems = find_problems(records)
    if problems:
        found = "; ".join(f"{len(names):,} {kind}: {abbreviate(names)}" for kind, names in problems.items())
        raise CaptionerError(f"{found}. Fix or remove these; `train.py check` lists more")


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
    found, shared = _decode_pictures(records)
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


def _decode_pictures(records: Sequence[CaptionedImage]) -> tuple[Problems, list[str]]:
    """Decode every picture; name those that cannot be decoded and those whose content is in two splits, and,
    which is no problem, training pictures that are in two data sets."""
    present = [record for record in records if exists(record.source)]
    undecodable: list[str] = []
    split_of_content: dict[bytes, CaptionedImage] = {}
    shared: list[str] = []
    repeated: list[str] = []
    batches = prefetch_batches((record.source for record in present), _digest, batch_size=64)
    results = (content for batch in batches for _, content in batch)
    bar = tqdm(results, total=len(present), desc="decoding", unit=" pictures", delay=2)
    for record, content in zip(present, bar, strict=True):
        if isinstance(content, ImageError):
            undecodable.append(str(content))
            continue
        first = split_of_content.setdefault(content, record)
        if first.split != record.split and first.source != record.source:
            shared.append(f"{first.source} in {first.split} is {record.source} in {record.split}")
        elif first.split == record.split == "train" and first.dataset != record.dataset:
            repeated.append(f"{first.source} of {first.dataset} is {record.source} of {record.dataset}")
    problems: Problems = defaultdict(list)
    if undecodable:
        problems["pictures cannot be decoded"] = undecodable
    if shared:
        problems["pictures are in two splits under other names"] = shared
    return problems, repeated


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


def _digest(source: StoredPicture) -> bytes:
    """A digest of the pixels, the same for files with the same content."""
    image = load_image(source, enough_px=_DIGEST_PX)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def _problem_lines(problems: Problems) -> list[str]:
    if not problems:
        return ["valid: no problems were found"]
    lines = ["not valid:"]
    for kind, names in problems.items():
        lines.append(f"  {len(names) or 'no'} {kind}" + (":" if names else ""))
        lines += _listed(names)
    return lines
