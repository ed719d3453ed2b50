"""Backend OpenVINO: on a CPU, without torch, and in bf16 if the processor computes in it."""

import sys
import threading
from collections.abc import Container, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from captioner.backends.exported import ExportedBackend, Graph

# Importing OpenVINO would report it to Intel; without this package it reports nothing.
_TELEMETRY = "openvino_telemetry"
_has_telemetry = _TELEMETRY in sys.modules
if not _has_telemetry:
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
try:
    import openvino
    from openvino import opset13
    from openvino.frontend import FrontEndManager
finally:
    if not _has_telemetry:
        del sys.modules[_TELEMETRY]

_EXACT_STRIDE_PX = 4
_CONVOLUTIONS = ("Convolution", "GroupConvolution")


class OpenvinoBackend(ExportedBackend):
    """Runs the graphs with OpenVINO: in bf16 on processors that have it, else in single precision.

    The CNN's layers of a stride below `_EXACT_STRIDE_PX` pixels remain in single precision: they take little
    time, and half of what bf16 would change in the annotations comes from them.
    """

    runtime = "openvino"

    @classmethod
    def load_graph(cls, path: Path, *, threads: int) -> Graph:
        """Threads that call it each have a stream of one thread."""
        parts = _split(path) if computes_in_bf16() else None
        if parts is None:
            precision = "bf16" if computes_in_bf16() else "f32"
            return _Graph(_compiled(_read(path), precision, threads))
        first, rest = parts
        return _Chain(_Graph(_compiled(first, "f32", threads)), _Graph(_compiled(rest, "bf16", threads)))


class _Graph:
    """A compiled graph."""

    def __init__(self, model: openvino.CompiledModel) -> None:
        self._model = model
        self._requests = threading.local()
        self.input_shapes: Mapping[str, Sequence[object]] = {_name(one): _shape(one) for one in model.inputs}
        self.output_shapes: Mapping[str, Sequence[object]] = {
            _name(one): _shape(one) for one in model.outputs
        }

    def __call__(
        self, given: Mapping[str, np.ndarray], *, without: Container[str] = ()
    ) -> dict[str, np.ndarray]:
        if not hasattr(self._requests, "own"):
            self._requests.own = self._model.create_infer_request()
        request: openvino.InferRequest = self._requests.own
        used = {name: np.ascontiguousarray(given[name]) for name in self.input_shapes}
        request.infer(list(used.values()), share_inputs=True, share_outputs=True)
        outputs = enumerate(self.output_shapes)
        # The request writes its next outputs into the same memory.
        return {
            name: request.get_output_tensor(index).data.copy()
            for index, name in outputs
            if name not in without
        }


class _Chain:
    """Two graphs of which the second reads the outputs of the first too."""

    def __init__(self, first: _Graph, rest: _Graph) -> None:
        self._first, self._rest = first, rest
        self.input_shapes, self.output_shapes = first.input_shapes, rest.output_shapes

    def __call__(
        self, given: Mapping[str, np.ndarray], *, without: Container[str] = ()
    ) -> dict[str, np.ndarray]:
        return self._rest({**given, **self._first(given)}, without=without)


def _split(path: Path) -> "tuple[openvino.Model, openvino.Model] | None":
    """A CNN's layers of a low stride, and those after them; None if they cannot be separated.

    The cut is before a convolution that all later layers depend on, such as the first of a block, and not in
    one of two branches.
    """
    model = _read(path)
    convolutions = _convolutions(model)
    for number, convolution in enumerate(convolutions):
        size, side_px = convolution.input(0).get_partial_shape()[2], model.inputs[0].get_partial_shape()[1]
        if size.is_static and size.get_length() * _EXACT_STRIDE_PX <= side_px.get_length():
            first, rest = _cut(path, number)
            if len(_convolutions(first)) + len(_convolutions(rest)) == len(convolutions):
                return first, rest
    return None


def _cut(path: Path, number: int) -> tuple[openvino.Model, openvino.Model]:
    """The graph before its convolution of that number, and the graph with the result of that as an input."""
    before, after = _read(path), _read(path)
    given = opset13.result(_convolutions(before)[number].input(0).get_source_output())
    first = openvino.Model([given], before.get_parameters(), "first layers")
    cut = _convolutions(after)[number].input(0).get_source_output()
    passed = opset13.parameter(cut.get_partial_shape(), np.float32)
    for reader in list(cut.get_target_inputs()):
        reader.replace_source_output(passed.output(0))
    given.friendly_name = passed.friendly_name = "first layers"
    return first, openvino.Model(after.get_results(), [passed, *after.get_parameters()], "rest")


def _convolutions(model: openvino.Model) -> list[openvino.Node]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() in _CONVOLUTIONS]


def _read(path: Path) -> openvino.Model:
    """Read as ONNX only: by itself OpenVINO would try all formats, and print what it thinks of each."""
    frontend = FrontEndManager().load_by_framework("onnx")
    return frontend.convert(frontend.load(str(path)))


def _compiled(model: openvino.Model, precision: str, threads: int) -> openvino.CompiledModel:
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
    }
    return _core().compile_model(model, "CPU", options)


def _name(tensor: openvino.ConstOutput) -> str:
    """Its name in the graph, besides which it may have those of tensors that are views of it."""
    return str(tensor.node.friendly_name.removesuffix("/sink_port_0"))


def _shape(tensor: openvino.ConstOutput) -> list[int | None]:
    return [size.get_length() if size.is_static else None for size in tensor.get_partial_shape()]


@cache
def _core() -> openvino.Core:
    return openvino.Core()


@cache
def computes_in_bf16() -> bool:
    """Whether this processor multiplies bf16 faster than single precision."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
