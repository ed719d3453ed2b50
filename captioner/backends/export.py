"""Export of models as ONNX graphs, which onnxruntime runs without torch.

There are three: `encoder` (pictures to annotations), `start` (annotations to the decoder's memory and first
state) and `step` (one word). They contain no weights but read them from the model folder's weights file in
half precision, so that one folder serves both torch and onnxruntime.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from captioner.atomic import replaced_folder
from captioner.backends.exported import (
    ALL,
    ALPHAS,
    ASKED,
    BEST,
    MEMORY,
    NEXT,
    NUM_BEST,
    OF_ASKED,
    STATE,
    WORDS,
)
from captioner.backends.load import Backend
from captioner.backends.onnx_backend import OnnxBackend
from captioner.backends.torch_backend import TorchBackend, limit_threads
from captioner.backends.tracing import PICTURES, any_size, encoder_graph, traced
from captioner.checkpoint.folder import (
    GRAPHS,
    LAYOUT_KEY,
    WEIGHTS,
    locate_model,
    weights_header,
    weights_layout,
)
from captioner.checkpoint.weights import CaptioningCheckpoint, load_checkpoint
from captioner.errors import CaptionerError
from captioner.model.captioning import CaptioningModel
from captioner.model.decoder import Decoder, Memory

TOLERANCE = 1e-3
"""Largest allowed difference between an exported model's log-probabilities and torch's, in nats."""

# Of the example, as `PICTURES`.
_BEAM, _STEPS = 5, 2


def export_model(folder: Path, out: Path) -> float:
    """Copy a model folder to `out` and add its graphs; `out` may be `folder` itself.

    Returns the largest difference between the log-probabilities of the first words and torch's, in nats, on
    synthetic pictures.

    Raises:
        captioner.errors.ModelFolderError: the folder is not a valid model.
        CaptionerError: onnxruntime does not compute the same, or the disk refuses.
    """
    limit_threads()
    checkpoint = load_checkpoint(folder)
    model = checkpoint.model.eval()
    with replaced_folder(out) as new:
        shutil.copytree(locate_model(folder), new, dirs_exist_ok=True)
        for name, graph in _graphs(model, checkpoint.config.preprocess.size_px).items():
            _share_weights(graph, new)
            ir.save(graph, new / GRAPHS[name])
        difference = _difference(new, checkpoint)
        if not difference <= TOLERANCE:
            raise CaptionerError(f"cannot export {folder}: log-probabilities would be off by {difference}")
    return difference


class _StartGraph(nn.Module):
    def __init__(self, model: CaptioningModel) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, annotations: Tensor) -> tuple[Tensor, ...]:
        memory = self.decoder.prepare_memory(annotations)
        return *_memory_tensors(memory).values(), *_state_tensors(self.decoder.initial_state(memory, 1))


class _StepGraph(nn.Module):
    """`changed` names the fields of the state that a step changes; only these are outputs of the graph."""

    def __init__(self, model: CaptioningModel, kind_of_state: Any, changed: Sequence[str]) -> None:
        super().__init__()
        self.decoder: Decoder[Any] = model.decoder
        self.kind_of_state, self.changed = kind_of_state, changed

    def forward(
        self, tokens: Tensor, memory: Sequence[Tensor], state: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        values, keys = memory[0], memory[-1]
        nothing = values.new_zeros(values.shape[0], 0)  # a step does not use the mean annotation
        output = self.decoder.step(tokens, self.kind_of_state(*state), Memory(keys, values, nothing))
        log_probs = self.decoder.logits(output.readout).log_softmax(dim=-1)
        return log_probs, output.alphas, *(getattr(output.state, name) for name in self.changed)


def _memory_tensors(memory: Memory) -> dict[str, Tensor]:
    """What a step attends to. If keys and values are one tensor, only the values."""
    if memory.keys is memory.values:
        return {"values": memory.values}
    return {"values": memory.values, "keys": memory.keys}


def _state_tensors(state: Any) -> list[Tensor]:
    return [getattr(state, field.name) for field in fields(state)]


@torch.no_grad()
def _graphs(model: CaptioningModel, size_px: int) -> dict[str, ir.Model]:
    images = torch.zeros(PICTURES, size_px, size_px, 3, dtype=torch.uint8)
    annotations = model.encoder.annotate(images)
    decoder: Decoder[Any] = model.decoder
    memory, tokens = decoder.prepare_memory(annotations), torch.zeros(PICTURES, _BEAM, dtype=torch.long)
    states = [decoder.initial_state(memory, _BEAM)]
    for _ in range(_STEPS):
        states.append(decoder.step(tokens, states[-1], memory).state)
    *_, before, state = states
    remembered = _memory_tensors(memory)
    names = [field.name for field in fields(state)]
    changed = [name for name in names if getattr(state, name) is not getattr(before, name)]
    of_memory, of_state = [f"{MEMORY}{name}" for name in remembered], [f"{STATE}{name}" for name in names]
    cells = [any_size(0, value.ndim - 2) for value in remembered.values()]
    grows = [
        any_size(0, 1, *(axis for axis in range(one.ndim) if one.shape[axis] != two.shape[axis]))
        for one, two in zip(_state_tensors(before), _state_tensors(state), strict=True)
    ]
    step = _StepGraph(model, type(state), changed)
    graphs = {
        "encoder": encoder_graph(model.encoder, size_px),
        "start": traced(
            _StartGraph(model),
            (annotations,),
            (any_size(0, 1),),
            inputs=["annotations"],
            outputs=[*of_memory, *of_state],
        ),
        "step": traced(
            step,
            (tokens, list(remembered.values()), _state_tensors(state)),
            (any_size(0, 1), cells, grows),
            inputs=["tokens", *of_memory, *of_state],
            outputs=[ALL, ALPHAS, *(f"{NEXT}{name}" for name in changed)],
        ),
    }
    _choose_words(graphs["step"].graph)
    return graphs


def _choose_words(graph: ir.Graph) -> None:
    """Add to a step the outputs for the likeliest and the requested words, whose numbers torch.export cannot
    trace."""
    log_probs = next(output for output in graph.outputs if output.name == ALL)
    num_best = ir.Value(name=NUM_BEST, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([1]))
    asked = ir.Value(
        name=ASKED, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["pictures", "beam", "asked"])
    )
    best = ir.node("TopK", [log_probs, num_best], {"axis": -1}, num_outputs=2)
    of_asked = ir.node("GatherElements", [log_probs, asked], {"axis": -1})
    graph.inputs.extend([num_best, asked])
    for name, value in zip((BEST, WORDS, OF_ASKED), (*best.outputs, *of_asked.outputs), strict=True):
        value.name = name
        value.dtype = ir.DataType.INT64 if name == WORDS else ir.DataType.FLOAT
        graph.outputs.append(value)
    graph.extend([best, of_asked])


def _share_weights(model: ir.Model, folder: Path) -> None:
    """Make a graph read its weights from the folder's file."""
    header, begin = weights_header(folder)
    stored = json.loads(header)
    for name, value in list(model.graph.initializers.items()):
        if name not in stored:
            continue
        first, last = stored[name]["data_offsets"]
        is_half = stored[name]["dtype"] == "F16"
        shape, dtype = ir.Shape(stored[name]["shape"]), ir.DataType.FLOAT16 if is_half else value.dtype
        assert dtype is not None
        tensor = ir.ExternalTensor(
            WEIGHTS, begin + first, last - first, dtype, shape=shape, name=name, base_dir=folder
        )
        if not is_half:
            value.const_value = tensor
            continue
        half = ir.Value(name=f"{name}.half", shape=shape, type=ir.TensorType(dtype), const_value=tensor)
        widened = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
        value.replace_all_uses_with(widened.outputs[0])
        del model.graph.initializers[name]
        widened.outputs[0].name = name
        model.graph.initializers[f"{name}.half"] = half
        model.graph.insert_before(model.graph[0], widened)
    model.metadata_props[LAYOUT_KEY] = weights_layout(folder)


def _difference(folder: Path, checkpoint: CaptioningCheckpoint) -> float:
    """The largest difference of log-probabilities, over a few words of synthetic pictures."""
    config, vocabulary = checkpoint.config, checkpoint.vocabulary
    exported = OnnxBackend.load(folder, config, vocabulary)
    rng, size = np.random.default_rng(0), config.preprocess.size_px
    images = rng.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    tokens = rng.integers(0, len(vocabulary), (4, 2, 3))
    given, expected = (
        _log_probs(model, images, tokens) for model in (exported, TorchBackend(checkpoint.model))
    )
    return float(np.abs(given - expected).max())


def _log_probs(model: Backend[Any], images: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    state = model.start(model.encode(images), tokens.shape[2])
    nothing, found = np.zeros((*tokens.shape[1:], 0), dtype=int), []
    for step in tokens:
        result = model.step(step, state, num_best=None, asked=nothing)
        found.append(result.log_probs)
        state = result.state
    return np.stack(found)
