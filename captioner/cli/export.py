"""The command `captioner export`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from captioner.cli.options import arg, model_folder
from captioner.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Export a model to ONNX: copy its folder and add three small graphs, which read the same weights.

    On a CPU caption.py then runs it with onnxruntime or OpenVINO, which are faster, start at once and need no
    PyTorch. PyTorch can still run the folder.
    """

    out: Annotated[Path, arg("FOLDER")]
    """The new folder; or the model's own, to add the graphs to it."""
    model: Annotated[Path | None, arg("MODEL", "the model that ships with captioner")] = None
    """Model to export: a folder, or hf://OWNER/NAME[@REVISION] on the Hugging Face Hub."""

    def run(self) -> int:
        """Export and report the difference from torch."""
        model = model_folder(self.model)
        if self.out.exists() and not (model.exists() and self.out.samefile(model)):
            raise UsageError(f"--out {self.out} exists; choose a new folder, or the model's own")
        from captioner.backends.export import export_model

        difference = export_model(model, self.out)
        sys.stdout.write(f"{self.out} (log-probabilities within {difference:.1e} of torch's)\n")
        return 0
