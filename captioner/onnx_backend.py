"""onnxruntime as what computes a model: on a CPU, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from jaxtyping import Float, Int, UInt8
from safetensors.numpy import load_file

from captioner.config import ModelConfig
from captioner.loading import num_cores
from captioner.model_folder import (
    GRAPHS,
    LAYOUT_KEY,
    WEIGHTS,
    CheckpointError,
    damage_told,
    require_finite,
    weights_layout,
)
from captioner.vocabulary import Vocabulary

MEMORY, STATE, NEXT = "memory.", "state.", "next."
"""How the names of tensors begin: of what belongs to a picture, to a hypothesis, and to that one word on."""

_ENCODED_AT_ONCE = 1  # pictures: what a larger batch saves, it loses in the CPU's caches

_FATAL_ONLY = 4  # errors are raised, and told by us


@dataclass(frozen=True)
class OnnxState:
    """What the graphs carry from step to step, by name: for the pictures still searched, and for each
    of their hypotheses."""

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
    """The graphs of a model folder as a `captioner.backends.Backend`.

    Threads that share a picture wait for each other at each layer of the CNN, so each has a batch of its own.
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
        self.num_at_once = threads or num_cores()

    @classmethod
    def load(
        cls, folder: Path, config: ModelConfig, vocabulary: Vocabulary, *, threads: int | None = None
    ) -> "OnnxBackend":
        """Load the graphs of a model folder.

        Raises:
            CheckpointError: a graph is damaged, or does not fit the other files.
        """
        _require_sound(folder)
        backend = cls(**{name: _session(folder, name) for name in GRAPHS}, threads=threads)
        backend._require_fit(folder, config, vocabulary)
        return backend

    def _require_fit(self, folder: Path, config: ModelConfig, vocabulary: Vocabulary) -> None:
        """Raises: CheckpointError, where the graphs are not those of the config."""
        size = config.preprocess.size_px
        images, annotations, log_probs = (
            self._encoder.input_shapes.get("images", ()),
            self._encoder.output_shapes.get("annotations", ()),
            self._step.output_shapes.get("log_probs", ()),
        )
        found = (*images[1:], *annotations[1:], *log_probs[2:])
        stated = (size, size, 3, config.grid.num_cells, config.annotation_dim, len(vocabulary))
        if found != stated:
            raise CheckpointError(
                f"the graphs of {folder} are of the sizes {found}, but its other files state {stated}; "
                "export it anew"
            )

    def encode(
        self, images: UInt8[np.ndarray, "pictures size size 3"]
    ) -> Float[np.ndarray, "pictures cells annotation"]:
        parts = range(0, len(images), _ENCODED_AT_ONCE)
        encoded = [self._encoder({"images": images[at : at + _ENCODED_AT_ONCE]}) for at in parts]
        return np.concatenate([part["annotations"] for part in encoded])

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
        """The outputs. What is given and not used in the graph is left out."""
        used = {name: np.ascontiguousarray(given[name]) for name in self.input_shapes}
        names = list(self.output_shapes)
        return dict(zip(names, self._session.run(names, used), strict=True))


def _require_sound(folder: Path) -> None:
    """Raises: CheckpointError, where a weight is not finite."""
    with damage_told(folder):
        weights = load_file(folder / WEIGHTS)
    require_finite(folder, {name: bool(np.isfinite(value).all()) for name, value in weights.items()})


def _session(folder: Path, name: str) -> onnxruntime.InferenceSession:
    """Each run takes one thread, the one that asks: see `OnnxBackend.num_at_once`.

    Raises: CheckpointError.
    """
    path = folder / GRAPHS[name]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds have no common name
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} is damaged: {reason}; export it anew") from error
    if session.get_modelmeta().custom_metadata_map.get(LAYOUT_KEY) != weights_layout(folder):
        raise CheckpointError(f"{path} was exported from other weights than {WEIGHTS}; export it anew")
    return session
