"""Backends that run the graphs of an exported model: on a CPU, without torch."""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, UInt8
from safetensors.numpy import load_file

from captioner.backends.external_data import external_locations
from captioner.checkpoint.folder import (
    GRAPHS,
    WEIGHTS,
    check_finite,
    check_weights,
    locate_model,
    translate_errors,
    weights_layout,
)
from captioner.config import ModelConfig
from captioner.decoding.step_model import StepResult
from captioner.errors import ModelFolderError, one_line
from captioner.images.prefetch import available_cores
from captioner.vocabulary import Vocabulary

MEMORY, STATE, NEXT = "memory.", "state.", "next."
"""Prefixes of tensor names: of a picture, of a hypothesis, and of a hypothesis one word later."""

NUM_BEST, ASKED = "num_best", "asked"
WORDS, BEST, OF_ASKED, ALL, ALPHAS = "words", "best_log_probs", "asked_log_probs", "log_probs", "alphas"
"""Further inputs and outputs of a step, as in `captioner.decoding.step_model`; `ALL` is of all words."""


@runtime_checkable
class Graph(Protocol):
    """A graph as a function of tensors by name. Sizes that depend on the input are not numbers."""

    input_shapes: Mapping[str, Sequence[object]]
    output_shapes: Mapping[str, Sequence[object]]

    def __call__(
        self, given: Mapping[str, np.ndarray], *, without: Container[str] = ()
    ) -> dict[str, np.ndarray]:
        """All outputs except those named in `without`; tensors that the graph does not use are ignored.

        Threads may call it at the same time.
        """
        ...


def encode_with(
    encoder: Graph, images: UInt8[np.ndarray, "pictures size size 3"]
) -> Float[np.ndarray, "pictures cells annotation"]:
    """Annotations by an encoder's graph, picture by picture: a batch would not fit the CPU's caches."""
    encoded = [encoder({"images": images[at : at + 1]})["annotations"] for at in range(len(images))]
    return np.concatenate(encoded)


@dataclass(frozen=True)
class GraphState:
    """What the graphs carry from step to step, by name: per picture still searched, and per hypothesis."""

    memory: Mapping[str, Float[np.ndarray, "pictures ..."]]
    state: Mapping[str, Float[np.ndarray, "pictures beam ..."]]

    @property
    def num_pictures(self) -> int:
        return len(next(iter(self.memory.values())))

    def select(
        self, pictures: Int[np.ndarray, " kept"], parents: Int[np.ndarray, "kept beam"]
    ) -> "GraphState":
        memory = self.memory
        if len(pictures) < self.num_pictures:
            memory = {name: value[pictures] for name, value in memory.items()}
        index = pictures[:, None], parents
        return GraphState(memory, {name: value[index] for name, value in self.state.items()})


class ExportedBackend(ABC):
    """The graphs of a model folder as a `captioner.backends.load.Backend`.

    Threads that share a picture wait for each other at each layer of the CNN, so each takes its own batch.
    """

    runtime: ClassVar[str]
    """The package that runs the graphs."""
    batch_size = 8

    def __init__(self, graphs: Mapping[str, Graph], *, vocab_size: int, threads: int) -> None:
        self._encoder, self._start, self._step = (graphs[name] for name in GRAPHS)
        self._vocab_size, self.max_concurrent_batches = vocab_size, threads

    @classmethod
    @abstractmethod
    def load_graph(cls, path: Path, *, threads: int) -> Graph:
        """Load a graph that so many threads may run at the same time, each on one core.

        May raise any exception if the file is damaged.
        """

    @classmethod
    def load(
        cls, folder: Path, config: ModelConfig, vocabulary: Vocabulary, *, threads: int | None = None
    ) -> "ExportedBackend":
        """Load the graphs of a model folder.

        Raises:
            ModelFolderError: a graph is damaged, or does not match the other files.
        """
        folder, threads = locate_model(folder), threads or available_cores()
        check_weights(folder)
        _check_finite(folder)
        for name in GRAPHS.values():
            _check_graph(folder, folder / name)
        with _without_links(folder) as files:
            graphs = {name: cls._loaded(folder, files, name, threads) for name in GRAPHS}
        backend = cls(graphs, vocab_size=len(vocabulary), threads=threads)
        backend._check_match(folder, config, vocabulary)
        return backend

    @classmethod
    def _loaded(cls, folder: Path, files: Path, name: str, threads: int) -> Graph:
        """`files` is the folder, or a copy without links. Raises: ModelFolderError, naming the folder."""
        try:
            return cls.load_graph(files / GRAPHS[name], threads=threads)
        except Exception as error:  # the runtimes' own exceptions have no common base
            raise _damaged(folder / GRAPHS[name], error) from error

    def _check_match(self, folder: Path, config: ModelConfig, vocabulary: Vocabulary) -> None:
        """Raises: ModelFolderError, if the graphs are not those of the config, or of an older version."""
        if NUM_BEST not in self._step.input_shapes:
            raise ModelFolderError(
                f"the graphs of {folder} are those of an older captioner; export it again: "
                f"captioner export --model {folder} --out {folder}"
            )
        carried = {*self._start.output_shapes}
        missing = {*self._step.input_shapes} - {"tokens", NUM_BEST, ASKED, *carried}
        changed = {name for name in self._step.output_shapes if name.startswith(NEXT)}
        missing |= {WORDS, BEST, OF_ASKED, ALL, ALPHAS} - {*self._step.output_shapes}
        missing |= {STATE + name.removeprefix(NEXT) for name in changed} - carried
        if missing:
            raise ModelFolderError(
                f"the graphs of {folder} lack {', '.join(sorted(missing))}; export it again"
            )
        size = config.preprocess.size_px
        images, annotations, log_probs = (
            self._encoder.input_shapes.get("images", ()),
            self._encoder.output_shapes.get("annotations", ()),
            self._step.output_shapes.get(ALL, ()),
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
        return encode_with(self._encoder, images)

    def start(
        self, annotations: Float[np.ndarray, "pictures cells annotation"], num_hypotheses: int
    ) -> GraphState:
        found = self._start({"annotations": annotations})
        memory = {name: value for name, value in found.items() if name.startswith(MEMORY)}
        # OpenVINO loses the number of pictures of an empty tensor.
        first = {
            name: value.reshape(len(annotations), *value.shape[1:])
            for name, value in found.items()
            if name.startswith(STATE)
        }
        state = {name: np.repeat(value, num_hypotheses, axis=1) for name, value in first.items()}
        return GraphState(memory, state)

    def step(
        self,
        tokens: Int[np.ndarray, "pictures beam"],
        state: GraphState,
        *,
        num_best: int | None,
        asked: Int[np.ndarray, "pictures beam asked"],
    ) -> StepResult[GraphState]:
        given = {
            "tokens": tokens.astype(np.int64),
            NUM_BEST: np.array([min(max(num_best or 0, 1), self._vocab_size)]),  # OpenVINO needs one
            ASKED: asked.astype(np.int64),
        }
        unused = {ALL} if num_best is not None else {BEST, WORDS}
        found = self._step({**given, **state.memory, **state.state}, without=unused)
        if num_best is None:
            log_probs = found[ALL]
            words = np.broadcast_to(np.arange(self._vocab_size), log_probs.shape)
        else:
            log_probs, words = found[BEST], found[WORDS].astype(np.int64)  # from C's long long
        changed = {
            STATE + name.removeprefix(NEXT): value for name, value in found.items() if name.startswith(NEXT)
        }
        next_state = GraphState(state.memory, {**state.state, **changed})
        return StepResult(
            words=words,
            log_probs=log_probs,
            asked=found[OF_ASKED],
            alphas=found[ALPHAS],
            state=next_state,
        )


def _damaged(path: Path, error: Exception) -> ModelFolderError:
    return ModelFolderError(f"{path} is damaged or truncated: {one_line(error)}; export it again")


def _check_graph(folder: Path, path: Path) -> None:
    """Raises: ModelFolderError, if a graph reads another file than the folder's weights, or was exported from
    other ones."""
    with translate_errors(folder):
        content = path.read_bytes()
        try:
            locations = external_locations(content)
        except ValueError as error:
            raise _damaged(path, error) from error
        if locations - {WEIGHTS}:
            raise ModelFolderError(f"{path} reads other files than {WEIGHTS}; export it again")
        if weights_layout(folder).encode() not in content:
            raise ModelFolderError(f"{path} was exported from other weights than {WEIGHTS}; export it again")


@contextmanager
def _without_links(folder: Path) -> Iterator[Path]:
    """A folder with the graphs and weights as files, for as long as they are loaded.

    Download caches consist of links, which some runtimes refuse because they lead out of the folder.
    """
    names = (WEIGHTS, *GRAPHS.values())
    if not any((folder / name).is_symlink() for name in names):
        yield folder
        return
    with TemporaryDirectory(ignore_cleanup_errors=True) as files, translate_errors(folder):
        for name in names:
            copyfile((folder / name).resolve(), Path(files) / name)
        yield Path(files)


def _check_finite(folder: Path) -> None:
    """Raises: ModelFolderError, if a weight is not finite."""
    with translate_errors(folder):
        weights = load_file(folder / WEIGHTS)
    check_finite(folder, {name: bool(np.isfinite(value).all()) for name, value in weights.items()})
