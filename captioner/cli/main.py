"""The commands `captioner` and caption.py."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import tyro

from captioner import __version__
from captioner.cli.options import DATASET_PARSING, hide
from captioner.errors import INTERRUPTED, CaptionerError, Stopped, UsageError
from captioner.formats import escape_controls

FAILED, USAGE = 1, 2

EXTRA_OF = {
    **dict.fromkeys(("torch", "timm", "torchvision"), "torch"),
    **dict.fromkeys(("onnx_ir", "onnxscript"), "export"),
    **dict.fromkeys(("sentencepiece",), "translate"),
    "openvino": "openvino",
    **dict.fromkeys(("ray", "pyarrow"), "ray"),
    **dict.fromkeys(("accelerate", "filelock", "pycocoevalcap", "pycocotools", "sacrebleu"), "train"),
    "tensorboard": "train",
    "huggingface_hub": "hub",
    **dict.fromkeys(
        ("fastapi", "fastapi_offline", "multipart", "prometheus_client", "pydantic", "uvicorn"), "serve"
    ),
}
"""Optional packages, and the extra of captioner that installs each."""

COMMANDS = {
    "caption": ("captioner.cli.caption:CaptionCommand", "caption pictures, and draw their attention"),
    "serve": ("captioner.cli.serve:ServeCommand", "serve captions over HTTP, and a page to try them"),
    "batch": ("captioner.cli.batch:BatchCommand", "caption folders, archives and Parquet on a cluster"),
    "evaluate": ("captioner.cli.evaluate:EvaluateCommand", "score a model, or captions in a file"),
    "ground": ("captioner.cli.ground:GroundCommand", "measure whether attention can be trusted"),
    "export": ("captioner.cli.export:ExportCommand", "export a model to run without PyTorch"),
    "info": ("captioner.cli.info:InfoCommand", "print what a model is: network, scores, licence"),
    "push": ("captioner.cli.push:PushCommand", "upload a model to the Hugging Face Hub"),
    "reduce": ("captioner.cli.reduce:ReduceCommand", "make a model faster, of low rank"),
    "average": ("captioner.cli.average:AverageCommand", "average the weights of models"),
    "completion": ("captioner.cli.completion:CompletionCommand", "print a script for the shell's completion"),
    "version": ("captioner.cli.main:VersionCommand", "print the version"),
}


@dataclass(frozen=True)
class VersionCommand:
    """Print the version."""

    def run(self) -> int:
        sys.stdout.write(f"captioner {__version__}\n")
        return 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `captioner`."""
    with command_line("captioner"):
        name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
        if name == "--version":
            sys.exit(VersionCommand().run())
        if name in ("-h", "--help"):
            sys.stdout.write(_overview())
            sys.exit(0)
        if name not in COMMANDS:
            raise UsageError(f"there is no command {name}; the commands are {', '.join(COMMANDS)}")
        module, _, kind = COMMANDS[name][0].partition(":")
        command = parse(getattr(import_module(module), kind), rest, prog=f"captioner {name}")
        sys.exit(command.run())


def caption_main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of caption.py."""
    with command_line("captioner"):
        from captioner.cli.caption import CaptionCommand

        given = sys.argv[1:] if arguments is None else arguments
        if list(given) == ["--version"]:
            sys.exit(VersionCommand().run())
        sys.exit(parse(CaptionCommand, given, prog="caption.py").run())


def _overview() -> str:
    lines = [f"  {name:<10} {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: captioner COMMAND ...",
            "",
            "Image captions with visual attention.",
            "",
            *lines,
            "",
            "captioner COMMAND --help explains a command. Models are trained with train.py.",
            "",
        ]
    )


def parse(kind: Any, arguments: Sequence[str], *, prog: str, **settings: Any) -> Any:
    """A command from its arguments. `--help` shows the flags that most people need, `--help-all` all.

    Prints and exits on help and on wrong usage.
    """
    shown, arguments = kind, list(arguments)
    advanced: Sequence[str] = getattr(kind, "ADVANCED", ())
    if "--help-all" in arguments:
        arguments = ["--help" if one == "--help-all" else one for one in arguments]
    elif advanced and {"-h", "--help"} & set(arguments):
        shown, arguments = hide(kind, advanced), ["--help"]
    return tyro.cli(shown, args=arguments, prog=prog, config=DATASET_PARSING, **settings)


@contextlib.contextmanager
def command_line(name: str) -> Iterator[None]:
    """Run the block as a command: report problems in one line, and exit with a status.

    That is the block's own, 1 if it fails, 2 for wrong usage and 130 if it is interrupted. Bugs keep their
    traceback.
    """
    status: Any = 0
    message: str | None = None
    try:
        yield
    except SystemExit as exit_:
        status = exit_.code
    except Stopped as stopped:
        message, status = str(stopped), INTERRUPTED
    except CaptionerError as error:
        message, status = str(error), USAGE if isinstance(error, UsageError) else FAILED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        extra = "train" if name == "train.py" else EXTRA_OF[package]
        message, status = f"this needs {package}; install it with: pip install 'captioner[{extra}]'", USAGE
    except PermissionError as error:
        message, status = f"no permission to use {error.filename}", FAILED
    except BrokenPipeError:  # the reader has enough (`| head`)
        status = FAILED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        message, status = f"cannot write standard output: {error.strerror}", FAILED
    except KeyboardInterrupt:
        status = INTERRUPTED
    try:
        sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and message is None:
            message, status = f"cannot write standard output: {error.strerror}", FAILED
        # The rest cannot be written; without this Python would complain again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message is not None:
        sys.stderr.write(f"{name}: {escape_controls(message)}\n")
    sys.exit(status)
