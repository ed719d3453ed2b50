"""Backend onnxruntime: on a CPU, without torch."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from captioner.backends.exported import ExportedBackend, Graph

_FATAL_ONLY = 4  # errors are raised, and reported by us


class OnnxBackend(ExportedBackend):
    """Runs the graphs with onnxruntime, in single precision."""

    runtime = "onnxruntime"

    @classmethod
    def load_graph(cls, path: Path, *, threads: int) -> Graph:  # noqa: ARG003
        """A run uses the thread that calls it."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = 1
        return _Graph(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))


class _Graph:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.input_shapes: Mapping[str, Sequence[object]] = {
            tensor.name: tensor.shape for tensor in session.get_inputs()
        }
        self.output_shapes: Mapping[str, Sequence[object]] = {
            tensor.name: tensor.shape for tensor in session.get_outputs()
        }

    def __call__(
        self, given: Mapping[str, np.ndarray], *, without: Container[str] = ()
    ) -> dict[str, np.ndarray]:
        used = {name: np.ascontiguousarray(given[name]) for name in self.input_shapes}
        names = [name for name in self.output_shapes if name not in without]
        return dict(zip(names, self._session.run(names, used), strict=True))
