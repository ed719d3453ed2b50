"""Backend onnxruntime: on a CPU, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float, Int, UInt8
from safetensors.numpy import load_file

from captioner.checkpoint.folder import (
    GRAPHS,
    LAYOUT_KEY,
    WEIGHTS,
    check_finite,
    locate_model,
    translate_errors,
    weights_layout,
)
from captioner.config import ModelConfig
from captioner.errors import ModelFolderError
from captioner.images.prefetch import available_cores
from captioner.vocabulary import Vocabulary

MEMORY, STATE, NEXT = "memory.", "state.", "next."
"""Prefixes of tensor names: of a picture, of a hypothesis, and of a hypothesis one word later."""

_ENCODER_BATCH_SIZE = 1  # a larger batch loses more in the CPU's caches than it saves

_FATAL_ONLY = 4  # errors are raised, and reported by us


@dataclass(frozen=True)
class OnnxState:
    """What the graphs carry from step to step, by name: per picture still searched, and per hypothesis."""

    memory: Mapping[str, Float[np.ndarray, "pictures ..."]]
    state: Mapping[str, Float[np.ndarray, "pictures beam ..."]]

    @property
    def num_pictures(self) -> int:
        return len(next(iter(self.memory.values())))

    def select(
        self, pictures: Int[np.ndarray, " kept"], parents: Int[np.ndarray, "kept beam"]
    ) -> "OnnxState":
        memory = self.memory
        if len(pictures) < self.num_pictures:
            memory = {name: value[pictures] for name, value in memory.items()}
        index = pictures[:, None], parents
        return OnnxState(memory, {name: value[index] for name, value in self.state.items()})


class OnnxBackend:
    """The graphs of a model folder as a `captioner.backends.load.Backend`.

    Threads that share a picture wait for each other at each layer of the CNN, so each takes its own batch.
    """

    def __init__(
        self,
        *,
        encoder: onnxruntime.InferenceSession,
        start: onnxruntime.InferenceSession,
        step: onnxruntime.InferenceSession,
        threads: int | None = None,
    ) -> None:
        self._encoder, self._start, self._step = _Graph(encoder), _Graph(start), _Graph(step)
        self.max_concurrent_batches = threads or available_cores()

    @classmethod
    def load(
        cls, folder: Path, config: ModelConfig, vocabulary: Vocabulary, *, threads: int | None = None
    ) -> "OnnxBackend":
        """Load the graphs of a model folder.

        Raises:
            ModelFolderError: a graph is damaged, or does not match the other files.
        """
        folder = locate_model(folder)
        _check_weights(folder)
        backend = cls(**{name: _session(folder, name) for name in GRAPHS}, threads=threads)
        backend._check_match(folder, config, vocabulary)
        return backend

    def _check_match(self, folder: Path, config: ModelConfig, vocabulary: Vocabulary) -> None:
        """Raises: ModelFolderError, if the graphs are not those of the config."""
        size = config.preprocess.size_px
        images, annotations, log_probs = (
            self._encoder.input_shapes.get("images", ()),
            self._encoder.output_shapes.get("annotations", ()),
            self._step.output_shapes.get("log_probs", ()),
        )
        found = (*images[1:], *annotations[1:], *log_probs[2:])
        stated = (size, size, 3, config.grid.num_cells, config.annotation_dim, len(vocabulary))
        if found != stated:
            raise ModelFolderError(
                f"the graphs of {folder} have the sizes {found}, but its other files state {stated}; "
                "export it again"
            )

    def encode(
        self, images: UInt8[np.ndarray, "pictures size size 3"]
    ) -> Float[np.ndarray, "pictures cells annotation"]:
        starts = range(0, len(images), _ENCODER_BATCH_SIZE)
        encoded = [self._encoder({"images": images[at : at + _ENCODER_BATCH_SIZE]}) for at in starts]
        return np.concatenate([outputs["annotations"] for outputs in encoded])

    def start(
        self, annotations: Float[np.ndarray, "pictures cells annotation"], num_hypotheses: int
    ) -> OnnxState:
        found = self._start({"annotations": annotations})
        memory = {name: value for name, value in found.items() if name.startswith(MEMORY)}
        state = {
            name: np.repeat(value, num_hypotheses, axis=1)
            for name, value in found.items()
            if name.startswith(STATE)
        }
        return OnnxState(memory, state)

    def step(
        self, tokens: Int[np.ndarray, "pictures beam"], state: OnnxState
    ) -> tuple[
        Float[np.ndarray, "pictures beam vocab"], Float[np.ndarray, "pictures beam heads cells"], OnnxState
    ]:
        found = self._step({"tokens": tokens.astype(np.int64), **state.memory, **state.state})
        log_probs, alphas = found.pop("log_probs"), found.pop("alphas")
        changed = {STATE + name.removeprefix(NEXT): value for name, value in found.items()}
        return log_probs, alphas, OnnxState(state.memory, {**state.state, **changed})


class _Graph:
    """A graph as a function of tensors by name."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.input_shapes = {tensor.name: tensor.shape for tensor in session.get_inputs()}
        self.output_shapes = {tensor.name: tensor.shape for tensor in session.get_outputs()}

    def __call__(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs; tensors that the graph does not use are ignored."""
        used = {name: np.ascontiguousarray(given[name]) for name in self.input_shapes}
        names = list(self.output_shapes)
        return dict(zip(names, self._session.run(names, used), strict=True))


def _check_weights(folder: Path) -> None:
    """Raises: ModelFolderError, if a weight is not finite."""
    with translate_errors(folder):
        weights = load_file(folder / WEIGHTS)
    check_finite(folder, {name: bool(np.isfinite(value).all()) for name, value in weights.items()})


def _session(folder: Path, name: str) -> onnxruntime.InferenceSession:
    """Each run uses only the calling thread: see `OnnxBackend.max_concurrent_batches`.

    Raises: ModelFolderError.
    """
    path = folder / GRAPHS[name]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        reason = " ".join(str(error).split())[:300]
        raise ModelFolderError(f"{path} is damaged or truncated: {reason}; export it again") from error
    if session.get_modelmeta().custom_metadata_map.get(LAYOUT_KEY) != weights_layout(folder):
        raise ModelFolderError(f"{path} was exported from other weights than {WEIGHTS}; export it again")
    return session
