"""One page about a data set: is it whole, how long are its captions, what does a vocabulary cover?"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from captioner.images import ImageError, StoredPicture, load_image
from captioner.loading import loaded_batches
from captioner.records import CaptionedImage, SplitName
from captioner.vocabulary import Vocabulary, tokenize

from .soundness import Problems, find_problems, is_there

SHOWN = 10
"""How many names of each problem are listed."""


def check(
    records: Sequence[CaptionedImage], unreadable: Mapping[SplitName, str], *, min_count: int
) -> tuple[str, bool]:
    """The page, and whether training on the records would be sound. Every picture is decoded.

    `unreadable` says why the records of a split could not be read; of test it does not matter.
    """
    words_of = {split: _words(records, split) for split in _splits(records)}
    problems = find_problems(records)
    for kind, names in _look_at_pictures(records).items():
        problems[kind] = names
    for split in ("train", "dev"):
        if split not in words_of:
            problems[f"pictures are in {split}"] = []
    lines = [
        *_counts(records, words_of),
        *(f"{split:<6} not read: {reason}" for split, reason in unreadable.items()),
        "",
        *_coverage(records, words_of, min_count=min_count),
        "",
        *_problem_lines(problems),
    ]
    return "\n".join(lines), not problems


def _splits(records: Iterable[CaptionedImage]) -> list[SplitName]:
    return list(dict.fromkeys(record.split for record in records))


def _words(records: Iterable[CaptionedImage], split: SplitName) -> list[list[str]]:
    return [tokenize(text) for record in records if record.split == split for text in record.captions]


def _counts(records: Sequence[CaptionedImage], words_of: dict[SplitName, list[list[str]]]) -> list[str]:
    lines = [f"{'split':<6} {'pictures':>9} {'captions':>9}   words in a caption: least, median, 95 %, most"]
    for split, captions in words_of.items():
        pictures = sum(record.split == split for record in records)
        lengths = [len(words) for words in captions] or [0]
        least, median, high, most = np.percentile(lengths, [0, 50, 95, 100])
        spread = f"{least:.0f}, {median:.0f}, {high:.0f}, {most:.0f}"
        lines.append(f"{split:<6} {pictures:>9,} {len(captions):>9,}   {spread}")
    return lines


def _coverage(
    records: Sequence[CaptionedImage], words_of: dict[SplitName, list[list[str]]], *, min_count: int
) -> list[str]:
    train_captions = (text for record in records if record.split == "train" for text in record.captions)
    known = set(Vocabulary.build(train_captions, min_count=min_count).words)
    lines = [
        f"vocabulary: {len(known):,} words (4 of them special) occur at least {min_count} times in train"
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


def _look_at_pictures(records: Sequence[CaptionedImage]) -> Problems:
    """Decode every picture that is there; name those that cannot be, and those in two splits by content."""
    present = [record for record in records if is_there(record.source)]
    undecodable: list[str] = []
    split_of_content: dict[bytes, CaptionedImage] = {}
    shared: list[str] = []
    batches = loaded_batches((record.source for record in present), _digest, batch_size=64)
    results = (content for batch in batches for _, content in batch)
    bar = tqdm(results, total=len(present), desc="decoding", unit=" pictures", delay=2)
    for record, content in zip(present, bar, strict=True):
        if isinstance(content, ImageError):
            undecodable.append(str(content))
            continue
        first = split_of_content.setdefault(content, record)
        if first.split != record.split and first.source != record.source:
            shared.append(f"{first.source} in {first.split} is {record.source} in {record.split}")
    problems: Problems = defaultdict(list)
    if undecodable:
        problems["pictures cannot be decoded"] = undecodable
    if shared:
        problems["pictures are in two splits under other names"] = shared
    return problems


def _digest(source: StoredPicture) -> bytes:
    """What two files share that hold the same pixels."""
    image = load_image(source)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def _problem_lines(problems: Problems) -> list[str]:
    if not problems:
        return ["sound: nothing that would spoil training was found"]
    lines = ["unsound:"]
    for kind, names in problems.items():
        lines.append(f"  {len(names) or 'no'} {kind}" + (":" if names else ""))
        lines += [f"    {name}" for name in names[:SHOWN]]
        if len(names) > SHOWN:
            lines.append(f"    and {len(names) - SHOWN:,} more")
    return lines
