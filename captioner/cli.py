"""The command line: `captioner caption PATH...`, the same as `python caption.py PATH...`."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tqdm import tqdm

from captioner import __version__
from captioner.errors import CaptionerError
from captioner.images import ImageError
from captioner.paths import Failures, named_pictures

if TYPE_CHECKING:
    from captioner.config import DecodingConfig
    from captioner.inference import Caption, Captioner

FAILED, USAGE, INTERRUPTED = 1, 2, 130

_PARSING = (tyro.conf.FlagCreatePairsOff,)


class UsageError(CaptionerError):
    """Arguments that make no sense together."""


class OutputError(CaptionerError):
    """A place that cannot be written to."""


def _hint(metavar: str, default: str) -> Any:
    """How an option that may be left out is shown: its value, and what it is without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True, kw_only=True)
class CaptionCommand:
    """Caption pictures: prints PATH<TAB>CAPTION for each, and draws what each word looked at.

    Exit status: 0, or 1 where a picture could not be read (the others are captioned), or 2 for wrong
    usage.
    """

    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...", help_behavior_hint="")
    ]
    """Pictures, folders of pictures, or - for paths on standard input, one a line."""
    recursive: bool = False
    """Walk folders to the bottom."""
    format: Literal["text", "jsonl", "csv"] = "text"
    """What to print. jsonl has the file, caption, tokens, log-probability and grid of each picture."""
    output: Annotated[Path | None, _hint("FILE", "standard output")] = None
    """Write the captions to this file."""
    with_attention: bool = False
    """With --format jsonl: add each word's attention over the grid."""
    overlay: Annotated[Path | None, _hint("DIR", "no figures")] = None
    """Write a figure a picture into this folder: each word with what it looked at."""
    overlay_style: Literal["smooth", "cells"] = "smooth"
    """Smooth heat, or the raw cells of the grid."""
    model: Annotated[Path | None, _hint("FOLDER", "the model that ships with captioner")] = None
    """Folder of the model."""
    beam_size: Annotated[int | None, _hint("INT", "what scored best on the model's dev split")] = None
    """Hypotheses kept for each picture."""
    length_penalty: Annotated[float | None, _hint("FLOAT", "what scored best on the model's dev split")] = (
        None
    )
    """Exponent of the length that log-probabilities are divided by; 0 favours short captions."""
    max_words: Annotated[int | None, _hint("INT", "the model's")] = None
    """Cut captions after this many words."""
    batch_size: int = 8
    """Pictures captioned at a time."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; auto takes a GPU if there is one."""
    threads: Annotated[int | None, _hint("INT", "one a core")] = None
    """CPU threads."""


@dataclass(frozen=True)
class VersionCommand:
    """Print the version."""


Command = (
    Annotated[CaptionCommand, tyro.conf.subcommand("caption")]
    | Annotated[VersionCommand, tyro.conf.subcommand("version")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `captioner`."""
    command = tyro.cli(
        Command,
        args=arguments,
        prog="captioner",
        description="Image captions with attention.",
        config=_PARSING,
    )
    if isinstance(command, VersionCommand):
        sys.stdout.write(f"captioner {__version__}\n")
    else:
        _exit_with(command)


def caption_main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of caption.py."""
    _exit_with(tyro.cli(CaptionCommand, args=arguments, prog="caption.py", config=_PARSING))


def _exit_with(command: CaptionCommand) -> None:
    try:
        status = run_caption(command)
        sys.stdout.flush()
    except CaptionerError as error:
        sys.stderr.write(f"captioner: {error}\n")
        status = USAGE if isinstance(error, UsageError) else FAILED
    except BrokenPipeError:
        # The reader has enough (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = FAILED
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


def run_caption(command: CaptionCommand) -> int:
    """Caption the pictures that a command names, and give the exit status."""
    _check_usage(command)
    captioner, decoding = _load(command)
    from captioner.output import format_caption, header

    failures = Failures()
    sources = named_pictures(command.paths, is_recursive=command.recursive, failures=failures)
    overlays = _OverlayWriter(command) if command.overlay else None
    with _opened(command.output) as stream, _progress(command) as progress:
        stream.write(header(command.format))
        for batch in captioner.caption_files(sources, batch_size=command.batch_size, decoding=decoding):
            for result in batch:
                if isinstance(result, ImageError):
                    failures.tell(str(result))
                    continue
                stream.write(format_caption(result, command.format, with_attention=command.with_attention))
                if overlays:
                    overlays.write(result)
            stream.flush()
            progress.update(len(batch))
    return FAILED if failures.count else 0


def _check_usage(command: CaptionCommand) -> None:
    if not command.paths:
        raise UsageError("give pictures, folders, or - for paths on standard input; see --help")
    if command.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {command.batch_size}")
    if command.threads is not None and command.threads < 1:
        raise UsageError(f"--threads must be at least 1, not {command.threads}")
    if command.with_attention and command.format != "jsonl":
        raise UsageError(f"--with-attention needs --format jsonl, not {command.format}")


def _load(command: CaptionCommand) -> "tuple[Captioner, DecodingConfig]":
    """The captioner, and the decoding that the command's flags make of the model's own."""
    import torch

    from captioner.inference import SHIPPED_MODEL, Captioner

    if command.threads is not None:
        torch.set_num_threads(command.threads)
    captioner = Captioner.load(command.model or SHIPPED_MODEL, device=command.device)
    given = {
        name: value
        for name in ("beam_size", "length_penalty", "max_words")
        if (value := getattr(command, name)) is not None
    }
    try:
        return captioner, replace(captioner.config.decoding, **given)
    except ValueError as error:
        raise UsageError(str(error)) from error


class _OverlayWriter:
    """Writes one figure a picture; two pictures of the same name do not overwrite each other."""

    def __init__(self, command: CaptionCommand) -> None:
        assert command.overlay is not None
        self.folder, self.style = command.overlay, command.overlay_style
        self.taken: set[str] = set()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {self.folder}: {error.strerror}") from error

    def write(self, caption: "Caption") -> None:
        from captioner.images import load_image
        from captioner.overlay import draw_overlay, save_overlay

        stem = Path(caption.file).stem
        name, number = stem, 1
        while name in self.taken:
            number += 1
            name = f"{stem}-{number}"
        self.taken.add(name)
        path = self.folder / f"{name}.attention.png"
        try:
            save_overlay(draw_overlay(caption, load_image(Path(caption.file)), style=self.style), path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    """The file to write to, or standard output; names that are not UTF-8 keep their bytes."""
    if output is None:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        yield sys.stdout
        return
    try:
        with output.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            yield stream
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error


def _progress(command: CaptionCommand) -> "tqdm[None]":
    """A bar on standard error, where someone looks and captions do not show the progress themselves."""
    is_watched = sys.stderr.isatty() and (command.output is not None or not sys.stdout.isatty())
    return tqdm(desc="captioning", unit=" pictures", delay=2, disable=not is_watched)


logging.getLogger("PIL").setLevel(logging.ERROR)
