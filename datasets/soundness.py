"""What would make training on a data set unsound, as far as it shows without opening a picture."""

from collections import defaultdict
from collections.abc import Sequence

from captioner.errors import first_of
from captioner.images import StoredPicture, ZipMember
from captioner.records import CaptionedImage

from . import DatasetError

LONGEST_CAPTION = 10_000
"""What has more characters is no caption."""

Problems = dict[str, list[str]]
"""What is wrong, and with which pictures."""


def find_problems(records: Sequence[CaptionedImage]) -> Problems:
    """Name pictures that are missing, listed twice, in two splits or without captions, and captions that
    are empty or endless."""
    problems: Problems = defaultdict(list)
    split_of_id: dict[tuple[str, str], str] = {}
    split_of_source: dict[StoredPicture, str] = {}
    for record in records:
        if not is_there(record.source):
            problems["pictures are missing"].append(str(record.source))
        if not record.captions:
            problems["pictures have no caption"].append(record.image_id)
        for caption in record.captions:
            if len(caption) > LONGEST_CAPTION:
                kind = f"captions have more than {LONGEST_CAPTION:,} characters"
                problems[kind].append(f"{record.image_id} ({len(caption):,})")
            elif not any(character.isalnum() for character in caption):
                problems["captions are empty"].append(f"{record.image_id} ({caption!r})")
        if (record.split, record.image_id) in split_of_id:
            problems["picture ids are there twice"].append(record.image_id)
        split_of_id[record.split, record.image_id] = record.split
        other = split_of_source.setdefault(record.source, record.split)
        if other != record.split:
            problems["pictures are in two splits"].append(f"{record.source} ({other} and {record.split})")
    return dict(problems)


def is_there(source: StoredPicture) -> bool:
    """Whether the picture's file is there; an archive's members come from its own list."""
    try:
        return isinstance(source, ZipMember) or source.is_file()
    except OSError:  # a name that is too long, or a folder without permission
        return False


def require_sound(records: Sequence[CaptionedImage]) -> None:
    """Refuse records with problems, and splits without pictures.

    Raises:
        DatasetError: naming the first of each kind.
    """
    for split in ("train", "dev"):
        if not any(record.split == split for record in records):
            raise DatasetError(f"there are no {split} pictures; `train.py check` shows what there is")
    problems = find_problems(records)
    if problems:
        told = "; ".join(f"{len(names):,} {kind}: {first_of(names)}" for kind, names in problems.items())
        raise DatasetError(f"{told}. Mend or leave these out; `train.py check` lists more")
