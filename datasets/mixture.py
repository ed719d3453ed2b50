"""Reader of several data sets as one.

A JSON file names them:

    {
     "coco": {"format": "coco", "root": "coco", "instances": "coco/annotations/instances_train2017.json"},
     "mine": {"format": "custom", "captions": "photos/captions.jsonl", "weight": 3}
    }

`format` is a reader of this package, whose flags are the other settings, with underscores. `weight` says how
often each training picture is seen per epoch, by default once; `instances` is as the flag of `train.py`.
Paths are relative to the file.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from captioner.bounds import without_repeats
from captioner.errors import reject_string
from captioner.records import CaptionedImage, RecordReader, SplitName
from captioner.training.recipe import from_plain, with_paths

from . import CaptionerError, MaySkipInvalid
from .formats import FORMATS

_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What an entry of the file says besides the reader's own settings."""

    format: str
    weight: Annotated[float, msgspec.Meta(gt=0, le=1_000)] = 1.0
    instances: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set of a mixture (a `captioner.records.RecordReader`)."""

    sets: Path
    name: str
    settings: _Settings
    reader: RecordReader

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """Raises: CaptionerError, naming the data set."""
        try:
            found = self.reader.read(splits)
        except CaptionerError as error:
            raise CaptionerError(f"{self.sets}: {self.name}: {error}") from error
        return [
            replace(
                record,
                image_id=f"{self.name}/{record.image_id}",
                dataset=self.name,
                weight=self.settings.weight,
                instances=self.settings.instances if record.split == "train" else None,
            )
            for record in found
        ]


@dataclass(frozen=True, kw_only=True)
class Mixture(MaySkipInvalid):
    """Several data sets in one run, named by a JSON file with the format, settings and weight of each."""

    sets: Path
    """The file, such as {"coco": {"format": "coco", "root": "coco"}, "mine": {"format": "custom", "captions":
    "mine.jsonl", "weight": 3}}; its paths are relative to it."""

    def read(self, splits: Sequence[SplitName]) -> list[CaptionedImage]:
        """The records of the given splits, a data set at a time.

        Raises:
            CaptionerError: the file is missing or malformed, or a data set cannot be read; it is named.
        """
        reject_string(splits, "splits")
        return [record for part in self.parts() for record in part.read(splits)]

    def parts(self) -> list[Part]:
        """The data sets, each of which can be read alone. Raises: CaptionerError."""
        try:
            entries = json.loads(self.sets.read_text(encoding="utf-8-sig"), object_pairs_hook=without_repeats)
        except FileNotFoundError:
            raise CaptionerError(f"{self.sets} is missing; see --sets") from None
        except (OSError, ValueError, RecursionError) as error:
            raise CaptionerError(f"cannot read {self.sets}: {error}") from None
        if not isinstance(entries, dict) or not entries:
            raise CaptionerError(f"{self.sets} must be an object with an entry for each data set")
        return [self._part(name, entry) for name, entry in entries.items()]

    def _part(self, name: str, entry: Any) -> Part:
        if not _NAME.fullmatch(name):
            raise CaptionerError(
                f"{self.sets}: the name of a data set may have letters, digits, -, _ and ., unlike {name!r}"
            )
        where = f"{self.sets}: {name}"
        is_known = isinstance(entry, dict) and isinstance(entry.get("format"), str)
        if not is_known or entry["format"] not in FORMATS:
            raise CaptionerError(f"{where} must be an object with a format: {', '.join(FORMATS)}")
        kind: Any = FORMATS[entry["format"]]
        own = [one.name for one in fields(_Settings)]
        known = [*own, *(one.name for one in fields(kind))]
        for setting in entry:
            if setting not in known:
                raise CaptionerError(f"{where} has no setting {setting!r}; there are {', '.join(known)}")
        try:
            settings = self._converted(_Settings, {one: entry[one] for one in own if one in entry}, where)
            reader = self._converted(kind, {one: entry[one] for one in entry if one not in own}, where)
        except ValueError as error:
            raise CaptionerError(str(error)) from None
        if self.skip_invalid:
            reader = replace(reader, skip_invalid=True)
        return Part(sets=self.sets, name=name, settings=settings, reader=reader)

    def _converted(self, kind: type, values: dict[str, Any], where: str) -> Any:
        """Raises: ValueError, starting with `where`."""
        return with_paths(from_plain(kind, values, where), lambda path: self.sets.parent / path)
