"""The command `captioner caption`."""

import contextlib
import itertools
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from tqdm import tqdm

from captioner.checkpoint.folder import model_digest, read_config
from captioner.cli.figures import FigureFlags, draw_or_report, figure_writers, given_style
from captioner.cli.options import (
    arg,
    changed,
    check_batch_size,
    check_flags,
    check_words,
    checked,
    flags,
    given,
    model_folder,
)
from captioner.cli.output import CaptionWriter, Failures
from captioner.cli.sidecar import SidecarWriter
from captioner.config import DecodingOptions, ModelOptions
from captioner.errors import ImageError, UsageError
from captioner.figures.style import FigureStyle
from captioner.formats import FORMAT_OF, OutputFormat
from captioner.images.discovery import find_pictures
from captioner.images.formats import has_picture_suffix
from captioner.images.reading import quieten_pillow
from captioner.inference import Captioner, required_tokens

_BASIC = ("beam_size", "length_penalty", "max_words", "num_captions")
_SAMPLING = ("sample", "temperature", "top_k", "top_p", "seed")
_SEARCH = ("min_words", "no_repeat_ngram", "must_include", "diverse_groups", "diversity")

DecodingFlags: Any = flags(DecodingOptions, _BASIC, override="the model's own")
SearchFlags: Any = flags(DecodingOptions, _SEARCH, override="the model's own")
SamplingFlags: Any = flags(DecodingOptions, _SAMPLING, override="the model's own")
MachineFlags: Any = flags(ModelOptions, ("device", "backend", "threads"))

_PAGE_SUFFIXES = {"--animate": (".gif",), "--gallery": (".html", ".htm")}


@dataclass(frozen=True, kw_only=True)
class CaptionCommand:
    """Caption pictures: prints PATH<TAB>CAPTION for each.

    --help-all shows more flags: for searching and sampling, other figures, devices and batches. The exit
    status is 1 if a picture could not be read (it is reported, and the others are captioned) or the command
    failed, and 2 for wrong usage.
    """

    ADVANCED: ClassVar[tuple[str, ...]] = (
        "hardware",
        "batch_size",
        "with_attention",
        "null",
        "shard",
        "overwrite",
        "search",
        "sampling",
        "figures",
    )

    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...", help_behavior_hint="")
    ]
    """Pictures, folders of pictures, or - to read paths from standard input, one per line."""
    recursive: Annotated[bool, arg("")] = False
    """Search subfolders too."""
    null: Annotated[bool, arg("")] = False
    """Names on standard input end in NUL, as `find -print0` writes them, not in a line's end."""
    shard: Annotated[str | None, arg("I/N")] = None
    """Caption every N-th picture, from the I-th on: N jobs, with I from 1 to N, caption each picture once."""
    format: Annotated[
        OutputFormat | None, arg("text|jsonl|csv|exiftool", "by the suffix of --output, else text")
    ] = None
    """Output format; jsonl has the file, caption, tokens, log-probability and grid of each picture, and
    exiftool is CSV from which exiftool writes captions into the pictures."""
    output: Annotated[Path | None, arg("FILE", "standard output")] = None
    """File to write captions to, replacing what is there."""
    resume: Annotated[bool, arg("")] = False
    """Skip the pictures that --output already has captions of, and append the others."""
    sidecar: Annotated[str | None, arg("SUFFIX")] = None
    """Write each caption into a file beside its picture with this suffix, such as .txt. Pictures that have
    one are skipped."""
    overwrite: Annotated[bool, arg("")] = False
    """With --sidecar: replace the captions that are there."""
    overlay: Annotated[Path | None, arg("DIR")] = None
    """Write a figure per picture into this folder: one panel per word with its attention."""
    gallery: Annotated[Path | None, arg("FILE.html")] = None
    """Write one page of all pictures, which shows each word's attention and needs no server."""
    model: Annotated[Path | None, arg("MODEL", "the model that ships with captioner")] = None
    """Model: a folder, the name of one that ships, or hf://OWNER/NAME[@REVISION] on the Hugging Face Hub."""
    decoding: DecodingFlags = field(default_factory=DecodingFlags)
    hardware: MachineFlags = field(default_factory=MachineFlags)
    batch_size: Annotated[int | None, arg("INT", "8, on a GPU 128")] = None
    """Pictures per batch; on a CPU each thread has its own batch."""
    with_attention: Annotated[bool, arg("")] = False
    """With --format jsonl: add each word's attention over the grid."""
    search: SearchFlags = field(default_factory=SearchFlags)
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    figures: FigureFlags = field(default_factory=FigureFlags)

    def run(self) -> int:
        """Caption the pictures and return the exit status."""
        changes = given(self.decoding) | given(self.search) | given(self.sampling)
        style = checked(FigureStyle, vars(self.figures.style))
        self._check(changes)
        folder = model_folder(self.model)
        machine = checked(ModelOptions, {"model": folder, **vars(self.hardware)})
        options = changed(read_config(folder).decoding, changes)
        if self.resume and (options.num_captions > 1 or options.sample):
            raise UsageError("--resume continues neither several captions per picture nor sampled ones")
        quieten_pillow()
        captioner = Captioner.from_options(machine)
        required_tokens(options, captioner.vocabulary)  # refused before anything is written
        searched = options
        if self.gallery and self.decoding.num_captions is None and not options.sample:
            # The page shows all that the search finds anyway.
            searched = replace(options, num_captions=options.search_width)
        failures = Failures()
        with contextlib.ExitStack() as stack:
            figures = figure_writers(  # first, because they may be refused
                self.figures, style, overlay=self.overlay, gallery=self.gallery, stack=stack
            )
            writer = CaptionWriter(
                self.output,
                self._format(),
                with_attention=self.with_attention,
                settings=self._settings(folder, options),
                is_resumed=self.resume,
            )
            captions, progress = stack.enter_context(writer), stack.enter_context(self._progress())
            sidecar = self._sidecar()
            if sidecar is not None:
                figures.append(sidecar)
            named = find_pictures(
                self.paths, is_recursive=self.recursive, report=failures.report, is_null=self.null
            )
            first, step = self._shard()
            named = itertools.islice(named, first, None, step)
            results = captioner.caption_files(
                (
                    path
                    for path in named
                    if not captions.is_done(str(path))
                    and (sidecar is None or sidecar.is_wanted(path, failures.report))
                ),
                batch_size=self.batch_size,
                options=searched,
            )
            for batch in results:
                for result in batch:
                    if isinstance(result, ImageError):
                        failures.report(str(result))
                        continue
                    captions.write(
                        replace(result, alternatives=result.alternatives[: options.num_captions - 1])
                    )
                    for figure in figures:
                        draw_or_report(figure, result, failures)
                progress.update(len(batch))
        for said in filter(None, (figure.summary() for figure in figures)):
            failures.note(said)
        return 1 if failures.count else 0

    def _check(self, changes: Mapping[str, Any]) -> None:
        """Refuse arguments that contradict each other, before the model is loaded. Raises: UsageError."""
        check_words("--must-include", changes.get("must_include", ()))
        check_words("--words", self.figures.style.words)
        if not self.paths:
            raise UsageError("give pictures, folders, or - to read paths from standard input; see --help")
        if self.null and "-" not in self.paths:
            raise UsageError("--null needs -, which reads names from standard input")
        check_batch_size(self.batch_size)
        check_flags(DecodingOptions, changes)
        if self.with_attention and self._format() != "jsonl":
            raise UsageError(f"--with-attention needs --format jsonl, not {self._format()}")
        if self.output is not None and has_picture_suffix(self.output.name):
            raise UsageError(f"--output {self.output} would overwrite a picture; choose another file")
        if self.format is None and self.output is not None and self.output.suffix.lower() == ".json":
            raise UsageError(f"--output {self.output}: captions are JSON lines; write to a .jsonl")
        self._check_files()
        draws = self.overlay or self.gallery or self.figures.matrix or self.figures.animate
        if self.shard and draws:
            raise UsageError(
                "--shard draws no figures, which those of other jobs would replace; leave them out"
            )
        if not draws and (flag := given_style(self.figures)):
            raise UsageError(f"{flag} needs a figure: --overlay, --matrix, --animate or --gallery")
        if self.resume and self.output is None:
            raise UsageError("--resume needs --output FILE")
        if self.resume and self.sidecar is not None:
            raise UsageError("--sidecar skips what is done by itself; leave --resume out")
        if self.resume and draws:
            raise UsageError("--resume cannot continue figures; draw them without it")
        for flag, path in (("--animate", self.figures.animate), ("--gallery", self.gallery)):
            suffixes = _PAGE_SUFFIXES[flag]
            if path is not None and path.suffix.lower() not in suffixes:
                raise UsageError(f"{flag} {path} must end in {suffixes[0]}")
        self._sidecar()  # which may be refused
        self._shard()
        if self.overwrite and self.sidecar is None:
            raise UsageError("--overwrite needs --sidecar SUFFIX; --output is overwritten anyway")
        if self.figures.references and not self.gallery:
            raise UsageError("--references needs --gallery FILE.html; captioner evaluate scores without it")

    def _check_files(self) -> None:
        """Refuse to write one file twice, or over the list that is read. Raises: UsageError."""
        files = {"--output": self.output, "--gallery": self.gallery, "--animate": self.figures.animate}
        flag_of: dict[Path, str] = {}
        for flag, path in files.items():
            if path is not None and (other := flag_of.setdefault(path.resolve(), flag)) != flag:
                raise UsageError(f"{other} and {flag} are the same file; choose another one")
        with contextlib.suppress(OSError, ValueError):  # standard input may be closed, or not a file
            is_read = "-" in self.paths and self.output is not None and self.output.is_file()
            if is_read and os.path.samestat(os.fstat(sys.stdin.fileno()), os.stat(self.output or "")):
                raise UsageError("--output is the list on standard input; choose another file")

    def _sidecar(self) -> SidecarWriter | None:
        """Raises: UsageError."""
        return None if self.sidecar is None else SidecarWriter(self.sidecar, overwrite=self.overwrite)

    def _shard(self) -> tuple[int, int]:
        """The index of the first picture, and the step to the next. Raises: UsageError."""
        if self.shard is None:
            return 0, 1
        number, _, count = self.shard.partition("/")
        if not all(re.fullmatch("[0-9]{1,9}", part) for part in (number, count)):
            raise UsageError(f"--shard {self.shard} must be like 3/16")
        if not 1 <= int(number) <= int(count):
            raise UsageError(f"--shard {self.shard} must be from 1/{count} to {count}/{count}")
        return int(number) - 1, int(count)

    def _format(self) -> OutputFormat:
        by_suffix = FORMAT_OF.get(self.output.suffix.lower(), "text") if self.output else "text"
        return self.format or by_suffix

    def _settings(self, folder: Path, options: DecodingOptions) -> dict[str, Any]:
        """What decides the lines of the output."""
        if self.output is None:
            return {}
        return {
            "model": model_digest(folder),
            "decoding": asdict(options),
            "with_attention": self.with_attention,
            "shard": self.shard,
        }

    def _progress(self) -> "tqdm[None]":
        """A bar on standard error, if someone watches and captions do not show the progress themselves."""
        is_watched = sys.stderr.isatty() and (self.output is not None or not sys.stdout.isatty())
        return tqdm(desc="captioning", unit=" pictures", delay=2, disable=not is_watched)
