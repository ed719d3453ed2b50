"""The command line: `captioner caption PATH...`, the same as `python caption.py PATH...`."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from PIL import Image
from tqdm import tqdm

from captioner import __version__
from captioner.cli_cluster import ClusterOptions
from captioner.cli_figures import FigureOptions, FigureWriter
from captioner.cli_model import ModelOptions
from captioner.config import MAX_CAPTIONS, DecodingConfig, Engine, OutputFormat, SamplingConfig
from captioner.errors import INTERRUPTED, CaptionerError, UsageError
from captioner.flags import DATASET_PARSING, PARSING, hint
from captioner.images import ImageError
from captioner.paths import Failures, has_picture_suffix, named_pictures

if TYPE_CHECKING:
    from captioner.captions import Caption
    from captioner.inference import Captioner, Wanted

FAILED, USAGE = 1, 2


@dataclass(frozen=True, kw_only=True)
class CaptionCommand:
    """Caption pictures: prints PATH<TAB>CAPTION for each, and draws what each word looked at.

    Exit status: 0; 1 where a picture could not be read (it is named, and the others are captioned), or
    where the model, the device or the place to write to is not there; 2 for wrong usage.
    """

    paths: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...", help_behavior_hint="")
    ]
    """Pictures, folders of pictures, or - for paths on standard input, one a line."""
    recursive: bool = False
    """Walk folders to the bottom."""
    format: Annotated[
        OutputFormat | Literal["parquet"] | None, hint("{text,jsonl,csv,parquet}", "text; parquet with ray")
    ] = None
    """What to print. jsonl has the file, caption, tokens, log-probability and grid of each picture."""
    output: Annotated[str | None, hint("FILE", "standard output")] = None
    """Write the captions to this file; with --engine ray, shards into this folder."""
    resume: bool = False
    """Go on with the file of --output: pictures that it has captions of are passed over."""
    engine: Engine = "local"
    """Where to work: in this process, or on a cluster, by Ray, of which a rerun does what is missing."""
    with_attention: bool = False
    """With --format jsonl: add each word's attention over the grid."""
    beam_size: Annotated[int | None, hint("INT", "what scored best on the model's dev split")] = None
    """Hypotheses kept for each picture."""
    length_penalty: Annotated[float | None, hint("FLOAT", "what scored best on the model's dev split")] = None
    """Exponent of the length that log-probabilities are divided by; 0 favours short captions."""
    max_words: Annotated[int | None, hint("INT", "the model's")] = None
    """Cut captions after this many words."""
    min_words: Annotated[int | None, hint("INT", "1")] = None
    """End no caption before it has so many words."""
    no_repeat_ngram: Annotated[int | None, hint("N", "repeats are allowed")] = None
    """Let no run of N words come twice in a caption."""
    num_captions: int = 1
    """Captions for each picture, the best first, with their log-probabilities."""
    must_include: Annotated[tuple[str, ...], hint("WORD...", "none")] = ()
    """Words that every caption must hold."""
    diverse_groups: Annotated[int | None, hint("INT", "1: plain beam search")] = None
    """Divide the beam into groups that avoid each other's words (diverse beam search)."""
    diversity: Annotated[float | None, hint("FLOAT", "0.5")] = None
    """What a word loses, in nats, for each earlier group that has just chosen it."""
    sample: bool = False
    """Draw captions at random instead, by their probability."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: int = 8
    """Pictures captioned as one batch; on a CPU each thread has a batch of its own."""
    run: ModelOptions = field(default_factory=ModelOptions)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    figures: FigureOptions = field(default_factory=FigureOptions)


@dataclass(frozen=True)
class VersionCommand:
    """Print the version."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `captioner`."""
    from captioner.cli_average import AverageCommand
    from captioner.cli_evaluate import EvaluateCommand  # caption.py need not look for data sets
    from captioner.cli_export import ExportCommand
    from captioner.cli_ground import GroundCommand

    _exit_with(
        Annotated[CaptionCommand, tyro.conf.subcommand("caption")]
        | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
        | Annotated[GroundCommand, tyro.conf.subcommand("ground")]
        | Annotated[AverageCommand, tyro.conf.subcommand("average")]
        | Annotated[ExportCommand, tyro.conf.subcommand("export")]
        | Annotated[VersionCommand, tyro.conf.subcommand("version")],
        arguments,
        prog="captioner",
        description="Image captions with attention.",
        config=DATASET_PARSING,
    )


def caption_main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of caption.py."""
    _exit_with(CaptionCommand, arguments, prog="caption.py", config=(*PARSING, tyro.conf.OmitArgPrefixes))


def _run(command: object) -> int:
    if isinstance(command, CaptionCommand):
        return run_caption(command)
    if isinstance(command, VersionCommand):
        sys.stdout.write(f"captioner {__version__}\n")
        return 0
    from captioner.cli_average import AverageCommand, run_average
    from captioner.cli_evaluate import EvaluateCommand, run_evaluate
    from captioner.cli_export import ExportCommand, run_export
    from captioner.cli_ground import GroundCommand, run_ground

    if isinstance(command, EvaluateCommand):
        run_evaluate(command)
    elif isinstance(command, GroundCommand):
        run_ground(command)
    elif isinstance(command, AverageCommand):
        run_average(command)
    elif isinstance(command, ExportCommand):
        run_export(command)
    return 0


def _exit_with(kind: Any, arguments: Sequence[str] | None, **parsing: Any) -> None:
    """Run the command that the arguments give, one of a kind, and exit with its status."""
    status: Any
    try:
        status = _run(tyro.cli(kind, args=arguments, **parsing))
    except SystemExit as ended:  # after --help, or wrong usage
        status = ended.code
    except CaptionerError as error:
        sys.stderr.write(f"captioner: {error}\n")
        status = USAGE if isinstance(error, UsageError) else FAILED
    except BrokenPipeError:  # the reader has enough (`| head`)
        status = FAILED
    except KeyboardInterrupt:
        status = INTERRUPTED
    try:
        sys.stdout.flush()
    except OSError:
        # What is left cannot be written; without this Python would complain again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def run_caption(command: CaptionCommand) -> int:
    """Caption the pictures that a command names, and give the exit status."""
    given = _check_usage(command)
    if command.engine == "ray":
        return _run_on_cluster(command, given)
    captioner = _load(command)
    from captioner.output import CaptionWriter

    failures = Failures()
    decoding = _decoding(command, captioner.config.decoding, given)
    named = named_pictures(command.paths, is_recursive=command.recursive, failures=failures)
    with contextlib.ExitStack() as stack:
        figures = command.figures.writers(stack)  # first, for they may be refused
        writer = CaptionWriter(
            None if command.output is None else Path(command.output),
            _format(command),
            with_attention=command.with_attention,
            is_resumed=command.resume,
        )
        captions, progress = stack.enter_context(writer), stack.enter_context(_progress(command))
        results = captioner.caption_files(
            (path for path in named if not captions.is_done(str(path))),
            batch_size=command.batch_size,
            decoding=decoding,
            wanted=_wanted(command, decoding),
        )
        for batch in results:
            for result in batch:
                if isinstance(result, ImageError):
                    failures.tell(str(result))
                    continue
                captions.write(replace(result, alternatives=result.alternatives[: command.num_captions - 1]))
                for figure in figures:
                    _draw(figure, result, failures)
            progress.update(len(batch))
    return FAILED if failures.count else 0


def _run_on_cluster(command: CaptionCommand, given: Mapping[str, Any]) -> int:
    from captioner.cli_cluster import run_on_cluster
    from captioner.model_folder import SHIPPED_MODEL, read_config

    try:
        from captioner.cluster import Job
        from captioner.parts import whole
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--engine ray needs {error.name}; install it with: pip install 'captioner[ray]'"
        ) from error
    decoding = _decoding(command, read_config(command.run.model or SHIPPED_MODEL).decoding, given)
    job = Job(
        model=replace(command.run, model=(command.run.model or SHIPPED_MODEL).absolute()),
        decoding=decoding,
        wanted=_wanted(command, decoding),
        batch_size=command.batch_size,
        output=whole(str(command.output)),
        format="jsonl" if command.format == "jsonl" else "parquet",
    )
    num_errors = run_on_cluster(command.paths, command.cluster, job, is_recursive=command.recursive)
    return FAILED if num_errors else 0


def _format(command: CaptionCommand) -> OutputFormat:
    assert command.format != "parquet"  # see _check_engine
    return command.format or "text"


def _decoding(command: CaptionCommand, default: DecodingConfig, given: Mapping[str, Any]) -> DecodingConfig:
    """The model's own decoding with what was given, and a beam that is wide enough."""
    try:
        decoding = replace(default, **given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if command.sample or command.num_captions <= decoding.beam_size:
        return decoding
    if command.beam_size is not None:
        raise UsageError(f"a beam of {command.beam_size} cannot give {command.num_captions} captions")
    return replace(decoding, beam_size=command.num_captions * decoding.diverse_groups)


def _wanted(command: CaptionCommand, decoding: DecodingConfig) -> "Wanted":
    """The captions that are asked for; a gallery shows all that the search found."""
    from captioner.inference import Wanted

    num_captions = command.num_captions
    if command.figures.gallery and not command.sample:
        num_captions = max(num_captions, decoding.beam_size)
    return Wanted(
        num_captions=num_captions,
        must_include=command.must_include,
        sampling=command.sampling if command.sample else None,
    )


def _draw(writer: FigureWriter, caption: "Caption", failures: Failures) -> None:
    try:
        writer.write(caption)
    except ImageError as error:
        failures.tell(str(error))


def _check_usage(command: CaptionCommand) -> dict[str, Any]:
    """Refuse arguments that make no sense; gives those that change the model's own decoding."""
    if not command.paths:
        raise UsageError("give pictures, folders, or - for paths on standard input; see --help")
    if command.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {command.batch_size}")
    if command.with_attention and command.format != "jsonl":
        raise UsageError(f"--with-attention needs --format jsonl, not {command.format or 'text'}")
    if command.output is not None and has_picture_suffix(command.output):
        raise UsageError(f"--output {command.output} would write captions over a picture; name a text file")
    if command.resume and (command.output is None or command.engine == "ray"):
        raise UsageError("--resume needs --output FILE; with --engine ray a rerun goes on by itself")
    if command.resume and (command.num_captions > 1 or command.figures != FigureOptions()):
        raise UsageError("--resume cannot go on with several captions a picture, nor with figures")
    command.run.check()
    command.figures.check()
    command.cluster.check()
    _check_engine(command)
    _check_wanted(command)
    names = [option.name for option in fields(DecodingConfig)]
    given = {name: value for name in names if (value := getattr(command, name)) is not None}
    try:
        DecodingConfig(**given)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return given


def _check_engine(command: CaptionCommand) -> None:
    """Of Ray, what cannot be had with it; without it, what needs it."""
    if command.engine == "local":
        if command.cluster != ClusterOptions():
            raise UsageError("--ray-address, --num-actors, --column and the like need --engine ray")
        if command.format == "parquet":
            raise UsageError("--format parquet needs --engine ray")
        return
    if command.output is None:
        raise UsageError("--engine ray needs --output DIR, a folder for the captions")
    if command.format not in (None, "parquet", "jsonl"):
        raise UsageError(f"--engine ray writes parquet or jsonl, not {command.format}")
    if command.with_attention or command.figures != FigureOptions() or "-" in command.paths:
        raise UsageError("--engine ray draws no figures, keeps no attention and reads no standard input")
    if command.sample:
        raise UsageError("--engine ray draws no captions at random")


def _check_wanted(command: CaptionCommand) -> None:
    if not 1 <= command.num_captions <= MAX_CAPTIONS:
        raise UsageError(f"--num-captions must be in 1..{MAX_CAPTIONS}, not {command.num_captions}")
    if command.sampling != SamplingConfig() and not command.sample:
        raise UsageError("--temperature, --top-k, --top-p and --seed need --sample")
    if command.sample and command.must_include:
        raise UsageError("captions that are drawn at random cannot be made to include words")
    if command.diverse_groups is not None and (command.sample or command.must_include):
        raise UsageError("--diverse-groups cannot be had together with --sample or --must-include")
    if command.diversity is not None and command.diverse_groups is None:
        raise UsageError("--diversity needs --diverse-groups")
    for word in command.must_include:
        if has_picture_suffix(word) or os.sep in word:
            raise UsageError(f"--must-include took {word} for a word; name the pictures before it")


def _load(command: CaptionCommand) -> "Captioner":
    logging.getLogger("PIL").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # load_image has its own limit
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a picture comes out as it can, or is told
    return command.run.load()


def _progress(command: CaptionCommand) -> "tqdm[None]":
    """A bar on standard error, where someone looks and captions do not show the progress themselves."""
    is_watched = sys.stderr.isatty() and (command.output is not None or not sys.stdout.isatty())
    return tqdm(desc="captioning", unit=" pictures", delay=2, disable=not is_watched)
