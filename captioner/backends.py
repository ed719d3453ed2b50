"""What computes a model: onnxruntime where the folder has exported graphs, else torch.

Preparation of pictures, search and figures are the same for both, and know neither.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from captioner.config import BackendName, Device, ModelConfig
from captioner.decoding import StepModel
from captioner.errors import CaptionerError
from captioner.model_folder import has_graphs
from captioner.search import State
from captioner.vocabulary import Vocabulary


class DeviceError(CaptionerError):
    """A device that is not found here."""


class BackendError(CaptionerError):
    """A backend that cannot run the model; the message says what to install or choose."""


@runtime_checkable
class Backend(StepModel[State], Protocol[State]):
    """A model that is ready to run: an encoder beside the decoder's step."""

    num_at_once: int
    """So many batches are best computed at the same time, each by a thread of its own."""

    def encode(self, images: UInt8[np.ndarray, "pictures size size 3"]) -> Any:
        """Squashed RGB pictures to annotations, which `start` takes."""
        ...


def load_backend(
    folder: Path,
    config: ModelConfig,
    vocabulary: Vocabulary,
    *,
    device: Device = "auto",
    backend: BackendName = "auto",
    threads: int | None = None,
) -> Backend[Any]:
    """The backend that is fastest for a model folder here, or the one that is named.

    That is torch on a GPU, onnxruntime on a CPU where the folder has graphs for it, else torch on a CPU.

    Raises:
        captioner.model_folder.CheckpointError: the folder is not a whole and sound model.
        DeviceError: the device is not there.
        BackendError: what the backend needs is not installed, or the folder lacks it.
    """
    if backend == "auto":
        backend = _fastest_backend(folder, device)
    try:
        if backend == "torch":
            from captioner.torch_backend import TorchBackend

            return TorchBackend.load(folder, device=device, threads=threads)
        from captioner.onnx_backend import OnnxBackend
    except ModuleNotFoundError as error:
        raise BackendError(_missing(folder, backend, error.name)) from error
    if device not in ("auto", "cpu"):
        raise DeviceError(f"onnxruntime runs on the CPU, not on {device}; use --backend torch")
    if not has_graphs(folder):
        raise BackendError(f"{folder} has no graphs for onnxruntime; make them with: captioner export")
    return OnnxBackend.load(folder, config, vocabulary, threads=threads)


def _fastest_backend(folder: Path, device: Device) -> BackendName:
    if device in ("cuda", "mps") or not has_graphs(folder) or not find_spec("onnxruntime"):
        return "torch"
    if device == "auto" and _may_have_gpu() and find_spec("torch"):
        from captioner.torch_backend import choose_device

        return "onnx" if choose_device("auto").type == "cpu" else "torch"
    return "onnx"


def _may_have_gpu() -> bool:
    """Whether it is worth the seconds that torch takes to load, to ask it for a GPU."""
    is_apple = sys.platform == "darwin"
    return is_apple or Path("/dev/kfd").exists() or shutil.which("nvidia-smi") is not None


def _missing(folder: Path, backend: BackendName, module: str | None) -> str:
    if backend == "onnx":
        return f"the onnx backend needs {module}; install it with: pip install onnxruntime"
    why = "the torch backend needs" if has_graphs(folder) else f"{folder} has no exported graphs, so it needs"
    return f"{why} {module}; install it with: pip install 'captioner[torch]'"
