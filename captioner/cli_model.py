"""The flags that say which model runs, and on what."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from captioner.config import BackendName, Device
from captioner.errors import UsageError
from captioner.flags import hint
from captioner.model_folder import SHIPPED_MODEL

if TYPE_CHECKING:
    from captioner.inference import Captioner


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model runs, and on what."""

    model: Annotated[Path | None, hint("FOLDER", "the model that ships with captioner")] = None
    """Folder of the model."""
    device: Device = "auto"
    """Where to run; auto takes a GPU if there is one."""
    backend: BackendName = "auto"
    """What computes: auto takes torch on a GPU, and on a CPU onnxruntime if the model was exported for it."""
    threads: Annotated[int | None, hint("INT", "one a core")] = None
    """CPU threads."""

    def check(self) -> None:
        """Raises: UsageError."""
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads must be at least 1, not {self.threads}")

    def load(self, *, threads: int | None = None) -> "Captioner":
        """Load the model; `threads` is for where none were given."""
        from captioner.inference import Captioner

        return Captioner.load(
            self.model or SHIPPED_MODEL,
            device=self.device,
            backend=self.backend,
            threads=self.threads or threads,
        )
