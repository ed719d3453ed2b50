"""Choice of the backend that runs a model: OpenVINO, onnxruntime or torch."""

import logging
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from captioner.checkpoint.folder import has_graphs
from captioner.config import BackendName, Device, ModelConfig
from captioner.decoding.step_model import State, StepModel
from captioner.errors import CaptionerError
from captioner.vocabulary import Vocabulary

if TYPE_CHECKING:
    from captioner.backends.exported import ExportedBackend

_logger = logging.getLogger(__name__)


@runtime_checkable
class Backend(StepModel[State], Protocol[State]):
    """A model that is ready to run: an encoder besides the decoder's step."""

    max_concurrent_batches: int
    """Batches that are best computed at the same time, each in its own thread."""
    batch_size: int
    """Pictures in a batch, if the caller does not say."""

    def encode(self, images: UInt8[np.ndarray, "pictures size size 3"]) -> Any:
        """Squashed RGB pictures to the annotations that `start` takes."""
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
    """The fastest backend for a model folder on this machine, or the one that is named.

    That is torch on a GPU. On a CPU, if the model was exported, it is OpenVINO where it is installed and the
    processor computes in bf16, else onnxruntime; and torch if it was not exported.

    Raises:
        captioner.errors.ModelFolderError: the folder is not a complete and valid model.
        CaptionerError: there is no such device, a package is missing, or the model was not exported.
    """
    if backend == "auto":
        backend = _fastest_backend(folder, device)
    try:
        if backend == "torch":
            from captioner.backends.torch_backend import TorchBackend

            return TorchBackend.load(folder, device=device, threads=threads)
        exported = _exported_backend(backend)
    except ModuleNotFoundError as error:
        raise CaptionerError(_what_to_install(folder, backend, error.name)) from error
    except (ImportError, OSError) as error:  # installed, but a library of the system is missing
        raise CaptionerError(
            f"the {backend} backend cannot be loaded: {error}; choose another --backend"
        ) from error
    if device not in ("auto", "cpu"):
        raise CaptionerError(f"{exported.runtime} runs on the CPU, not on {device}; use --backend torch")
    if not has_graphs(folder):
        raise CaptionerError(
            f"{folder} was not exported for {exported.runtime}; do so with: "
            f"captioner export --model {folder} --out {folder}"
        )
    return exported.load(folder, config, vocabulary, threads=threads)


def _exported_backend(name: BackendName) -> "type[ExportedBackend]":
    if name == "openvino":
        from captioner.backends.openvino_backend import OpenvinoBackend

        return OpenvinoBackend
    from captioner.backends.onnx_backend import OnnxBackend

    return OnnxBackend


def _fastest_backend(folder: Path, device: Device) -> BackendName:
    if device in ("cuda", "mps") or not has_graphs(folder) or not find_spec("onnxruntime"):
        return "torch"
    if device == "auto" and _may_have_gpu() and find_spec("torch"):
        from captioner.backends.torch_backend import choose_device

        if choose_device("auto").type != "cpu":
            return "torch"
    return "openvino" if _has_fast_openvino() else "onnx"


def _has_fast_openvino() -> bool:
    """Whether OpenVINO is installed, works, and would compute in bf16."""
    if not find_spec("openvino"):
        return False
    try:
        from captioner.backends.openvino_backend import computes_in_bf16

        return computes_in_bf16()
    except (ImportError, OSError, RuntimeError) as error:
        _logger.warning("OpenVINO is installed but does not work (%s); onnxruntime is used", error)
        return False


def _may_have_gpu() -> bool:
    """Whether it is worth importing torch, which takes seconds, to look for a GPU."""
    is_apple = sys.platform == "darwin"
    return is_apple or Path("/dev/kfd").exists() or shutil.which("nvidia-smi") is not None


def _what_to_install(folder: Path, backend: BackendName, module: str | None) -> str:
    if backend != "torch":
        package = "onnxruntime" if backend == "onnx" else "'captioner[openvino]'"
        return f"the {backend} backend needs {module}; install it with: pip install {package}"
    reason = "the torch backend needs" if has_graphs(folder) else f"{folder} was not exported, so it needs"
    return f"{reason} {module}; install it with: pip install 'captioner[torch]'"
