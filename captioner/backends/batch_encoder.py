"""Encoding of many pictures by a frozen encoder, as fast as this machine can."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, UInt8

from captioner.backends.exported import Graph, encode_with
from captioner.backends.onnx_backend import OnnxBackend
from captioner.backends.torch_backend import annotate
from captioner.backends.tracing import encoder_graph
from captioner.errors import one_line
from captioner.images.prefetch import available_cores
from captioner.model.encoder import Encoder

_WORTH_EXPORTING = 400  # pictures: exporting a CNN takes as long as encoding about 200 with torch

_logger = logging.getLogger(__name__)

Encode: TypeAlias = Callable[
    [UInt8[np.ndarray, "pictures size size 3"]], Float[np.ndarray, "pictures cells annotation"]
]


@dataclass(frozen=True)
class BatchEncoder:
    """A function that encodes pictures, best called by so many threads at once."""

    encode: Encode
    num_threads: int


def torch_batch_encoder(encoder: Encoder) -> BatchEncoder:
    """The encoder on the device where it is."""
    device = next(encoder.parameters()).device

    @torch.inference_mode()
    def encode(images: UInt8[np.ndarray, "pictures size size 3"]) -> np.ndarray:
        return annotate(encoder, torch.tensor(images, device=device)).cpu().numpy()

    return BatchEncoder(encode, num_threads=1)


def fast_batch_encoder(encoder: Encoder, *, size_px: int, num_pictures: int) -> BatchEncoder:
    """On a CPU the encoder's graph, run by onnxruntime in a thread per core; for few pictures, on a GPU, or
    if it cannot be exported, the encoder itself. The annotations are the same but for rounding."""
    is_on_cpu = next(encoder.parameters()).device.type == "cpu"
    if not is_on_cpu or num_pictures < _WORTH_EXPORTING:
        return torch_batch_encoder(encoder)
    try:
        graph = _load_graph(encoder, size_px)
    except Exception as error:  # the exporter's have no common base
        _logger.info("the CNN cannot be exported (%s); torch runs it, which is slower", one_line(error))
        return torch_batch_encoder(encoder)
    return BatchEncoder(partial(encode_with, graph), num_threads=available_cores())


def _load_graph(encoder: Encoder, size_px: int) -> Graph:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        ir.save(encoder_graph(encoder, size_px), path, external_data="weights")
        return OnnxBackend.load_graph(path, threads=1)
