"""The command `captioner export`: a model folder that runs without torch."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from captioner.errors import UsageError
from captioner.flags import hint
from captioner.model_folder import SHIPPED_MODEL


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Export a model to ONNX: its folder with three small graphs, which read the same weights.

    On a CPU caption.py then runs it by onnxruntime, without torch, faster and at once. By torch the folder
    can be run as before.
    """

    out: Path
    """The new folder; or the model's own, which then has the graphs too."""
    model: Annotated[Path | None, hint("FOLDER", "the model that ships with captioner")] = None
    """Folder of the model."""
    int8: bool = False
    """Let the decoder multiply in 8 bits: faster, and a part of the captions is worded otherwise."""


def run_export(command: ExportCommand) -> None:
    """Export as the command says."""
    model = command.model or SHIPPED_MODEL
    if command.out.exists() and not (model.exists() and command.out.samefile(model)):
        raise UsageError(f"--out {command.out} is there already; name a new folder, or the model's own")
    try:
        from captioner.export import export_model
    except ModuleNotFoundError as error:
        raise UsageError(
            f"exporting needs {error.name}; install it with: pip install 'captioner[export]'"
        ) from error
    difference = export_model(model, command.out, int8=command.int8)
    sys.stdout.write(f"{command.out} (log-probabilities within {difference:.1e} of torch's)\n")
