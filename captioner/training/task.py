"""Task: the training loop's interface to data, model and score."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from captioner.checkpoint.weights import Checkpoint
from captioner.data.batching import CaptionedDataset
from captioner.model.captioning import AttentionModel
from captioner.vocabulary import Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Scores of the texts that a model generates for dev. `score` decides which model is best; `entries` are
    groups of named values for the logs, with `dev` the scores among them."""

    score: float
    entries: dict[str, dict[str, float | None]]


_NUM_SHOWN = 8

Record = TypeVar("Record")


def shown(records: Sequence[Record]) -> Sequence[Record]:
    """The few dev records whose attention is drawn after each epoch."""
    return records[:: max(len(records) // _NUM_SHOWN, 1)][:_NUM_SHOWN]


@runtime_checkable
class Task(Protocol):
    """Captioning pictures (`captioner.training.captioning`) or translation (`captioner.translation.task`)."""

    vocabulary: Vocabulary

    @property
    def start(self) -> Checkpoint[Any, Any] | None:
        """The model that provides the initial weights, if they are not random."""
        ...

    @property
    def train(self) -> CaptionedDataset: ...

    @property
    def dev(self) -> CaptionedDataset: ...

    def objects(self) -> Mapping[str, Collection[str]]:
        """The categories of the annotated objects, by the id of each source of train where they are known."""
        ...

    def make_model(self) -> AttentionModel[Any]:
        """The model that training starts with. Its random weights come from torch's global generator."""
        ...

    def digest(self) -> str:
        """A digest of the training data and the initial weights."""
        ...

    def validate(self, model: AttentionModel[Any], *, num_workers: int) -> Validation:
        """Generate a text for each source of dev with a model in evaluation mode, and score the texts."""
        ...

    def to_checkpoint(self, model: AttentionModel[Any], metrics: dict[str, Any]) -> Checkpoint[Any, Any]:
        """The model with everything stored beside it."""
        ...

    def figures(self, model: AttentionModel[Any]) -> Iterator["Figure"]:
        """The attention on a few sources of dev, the same ones each time."""
        ...

    def tune_decoding(self, folder: Path, *, num_workers: int = 0) -> object:
        """Store in a trained model's folder the decoding options with the best dev score, and its scores."""
        ...
