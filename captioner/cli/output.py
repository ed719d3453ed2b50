"""Resumable files of captions, and reports of failures."""

import csv
import errno
import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from captioner.atomic import replace_text
from captioner.caption import Caption
from captioner.errors import CaptionerError
from captioner.formats import (
    CSV_HEADERS,
    OutputFormat,
    csv_line,
    escape_controls,
    format_caption,
    format_name,
    may_start,
    name_in,
)

_MAX_NAME_BYTES = 200  # of an output, to leave room for what its settings file adds


class Failures:
    """Reports pictures that are skipped, one line each on standard error, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def report(self, message: str) -> None:
        self.count += 1
        self.note(message)

    def note(self, message: str) -> None:
        """Print a message that is not about a failure."""
        tqdm.write(f"captioner: {escape_controls(message)}", file=sys.stderr)


class CaptionWriter:
    """Writes captions to a file or to standard output; names that are not UTF-8 keep their bytes.

    Each caption is written as it comes, so that a killed process leaves whole lines; the first one replaces
    what was in the file before. Beside a file, a hidden one records the `settings` that decide the captions;
    with `is_resumed`, writing continues after the captions in the file if its settings are the same.

    Raises:
        CaptionerError: the file cannot be opened or written, or was not written by captioner with the same
            settings.
        BrokenPipeError: the reader of standard output is gone.
    """

    def __init__(
        self,
        output: Path | None,
        output_format: OutputFormat,
        *,
        with_attention: bool,
        settings: Mapping[str, Any],
        is_resumed: bool = False,
    ) -> None:
        self.output, self.format, self.with_attention = output, output_format, with_attention
        self._done: frozenset[str] = frozenset()
        self._has_begun = False
        if output is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
            self.stream = sys.stdout
            return
        self._settings = json.loads(json.dumps({"format": output_format, **settings}, default=str))
        try:
            if is_resumed and output.exists():
                _check_settings(output, settings_file(output), self._settings)
                self._done = _cut_to_whole_lines(output, output_format)
                self._has_begun = output.stat().st_size > 0
            self.stream = output.open("a", encoding="utf-8", errors="surrogateescape", newline="")
        except OSError as error:
            raise self._error(error) from error

    def __enter__(self) -> "CaptionWriter":
        return self

    def is_done(self, file: str) -> bool:
        """Whether the resumed file has a caption of this picture."""
        return format_name(file, self.format) in self._done

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.output is not None:
                self.stream.close()
        except OSError as closing:
            raise self._error(closing) from closing

    def write(self, caption: Caption) -> None:
        if not self._has_begun:
            self._begin()
        self._write(format_caption(caption, self.format, with_attention=self.with_attention))

    def _begin(self) -> None:
        """Replace what is in the file. Raises: CaptionerError."""
        self._has_begun = True
        if self.output is not None and self.output.is_file():  # not a device, such as /dev/null
            try:
                _write_settings(settings_file(self.output), self._settings)
                self.stream.truncate(0)
            except OSError as error:
                raise self._error(error) from error
        if self.format in CSV_HEADERS:
            self._write(csv_line(CSV_HEADERS[self.format]))

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> CaptionerError:
        return CaptionerError(f"cannot write {self.output or 'standard output'}: {error.strerror or error}")


def settings_file(output: Path) -> Path:
    """The hidden file beside an output that records how its captions are made."""
    output = output.resolve()
    name = output.name
    if len(os.fsencode(name)) > _MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return output.with_name(f".{name}.settings.json")


def _write_settings(record: Path, settings: Mapping[str, Any]) -> None:
    """If the folder refuses the file, the output is still written but cannot be resumed. Raises: OSError."""
    try:
        replace_text(record, json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
            raise


def _check_settings(output: Path, record: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to continue a file whose captions were made otherwise. Raises: OSError, CaptionerError."""
    if output.stat().st_size == 0:
        return
    try:
        before = json.loads(record.read_bytes())
    except FileNotFoundError:
        reason = f"its settings {record.name} are missing; if it was renamed, rename them too"
        raise _not_ours(output, reason) from None
    except ValueError as error:
        raise _not_ours(output, f"{record.name} is damaged: {error}") from error
    before, now = _flat(before if isinstance(before, dict) else {}), _flat(settings)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise CaptionerError(
            f"{output} has captions made with another {', '.join(changed)}; use the same flags, or choose "
            "another --output"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the decoding options each under its own name."""
    decoding = settings.get("decoding")
    return {**settings, **decoding, "decoding": None} if isinstance(decoding, dict) else dict(settings)


def _not_ours(output: Path, reason: str) -> CaptionerError:
    return CaptionerError(f"{output} was not written by captioner ({reason}); choose another --output")


def _cut_to_whole_lines(output: Path, output_format: OutputFormat) -> frozenset[str]:
    """The names of the pictures that a file has captions of; cuts off an incomplete last line.

    Raises: OSError; CaptionerError, if the file has another format.
    """
    names = set()
    end = 0
    with output.open("r+b") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                if number == 0 and not may_start(line, output_format):
                    raise _not_ours(output, f"it is not {output_format}")
                break
            end += len(line)
            if number == 0 and output_format in CSV_HEADERS:
                if line != csv_line(CSV_HEADERS[output_format]).encode():
                    raise _not_ours(output, "its header differs")
                continue
            try:
                names.add(name_in(line.decode(errors="surrogateescape"), output_format))
            except (ValueError, LookupError, TypeError, RecursionError, csv.Error) as error:
                raise _not_ours(output, f"line {number + 1} is not {output_format}") from error
        file.truncate(end)
    return frozenset(names)
