"""Tracing of modules as ONNX graphs."""

import warnings
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn

from captioner.model.encoder import Encoder

PICTURES = 3
"""Those of the example that a graph is traced with; graphs take any number."""


def encoder_graph(encoder: Encoder, size_px: int) -> ir.Model:
    """The graph of an encoder, with its weights. May raise any exception of torch's exporter."""
    with torch.no_grad():
        images = torch.zeros(PICTURES, size_px, size_px, 3, dtype=torch.uint8)
        return traced(
            _EncoderGraph(encoder), (images,), (any_size(0),), inputs=["images"], outputs=["annotations"]
        )


class _EncoderGraph(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder.annotate(images)


def any_size(*axes: int) -> dict[int, Any]:
    """The axes of a tensor whose size may differ from the example's."""
    return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)


def traced(
    module: nn.Module,
    example: tuple[Any, ...],
    any_size: tuple[Any, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> ir.Model:
    """The graph of a module, as traced on an example."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter itself
        program = torch.onnx.export(
            module.eval(),
            example,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=any_size,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    optimizer.fold_constants(program.model, should_fold=_should_fold)
    optimizer.remove_unused_nodes(program.model)
    _strip(program.model)
    return program.model


def _should_fold(node: ir.Node) -> bool | None:
    """Folding a transposed weight would store it in the graph; onnxruntime transposes it when loading."""
    return False if node.op_type == "Transpose" else None


def _strip(model: ir.Model) -> None:
    """Remove each node's origin in the source, which is long and contains paths of this machine."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
