"""Checks of a data set before training."""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from captioner.errors import CaptionerError, ImageError, abbreviate
from captioner.images.prefetch import prefetch_batches
from captioner.images.reading import load_image
from captioner.images.sources import StoredPicture
from captioner.records import CaptionedImage

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


def decode_pictures(records: Sequence[CaptionedImage]) -> tuple[Problems, list[str]]:
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


def _digest(source: StoredPicture) -> bytes:
    """A digest of the pixels, the same for files with the same content."""
    image = load_image(source, enough_px=_DIGEST_PX)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
