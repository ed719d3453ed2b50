"""What a run learns: all that the training loop needs to know of its data, its model and its score."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from captioner.batches import CaptionedDataset
from captioner.checkpoint import StoredModel
from captioner.model import AttentionModel
from captioner.vocabulary import Vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What the texts are worth that a model writes for the dev split. `score` says which model is best; the
    `entries`, groups of named figures, go to the logs, with `dev` the scores among them."""

    score: float
    entries: dict[str, dict[str, float | None]]


_NUM_SHOWN = 8

Record = TypeVar("Record")


def shown(records: Sequence[Record]) -> Sequence[Record]:
    """The few of dev whose attention is shown each epoch."""
    return records[:: max(len(records) // _NUM_SHOWN, 1)][:_NUM_SHOWN]


@runtime_checkable
class Task(Protocol):
    """To caption pictures (`captioner.captioning_task`), or to translate (`captioner.translation_task`)."""

    vocabulary: Vocabulary

    @property
    def start(self) -> StoredModel[Any, Any] | None:
        """The model that the first weights are taken from, if they are not random."""
        ...

    @property
    def train(self) -> CaptionedDataset: ...

    @property
    def dev(self) -> CaptionedDataset: ...

    def make_model(self) -> AttentionModel[Any]:
        """The model that training starts with. What is random in it comes from torch's own generator."""
        ...

    def digest(self) -> str:
        """What changes when the training data or the model that training starts with does."""
        ...

    def validate(self, model: AttentionModel[Any], *, num_workers: int) -> Validation:
        """Have the model, in evaluation mode, write a text for each source of dev, and score the texts."""
        ...

    def stored(self, model: AttentionModel[Any], metrics: dict[str, Any]) -> StoredModel[Any, Any]:
        """The model with all that belongs to it, to be saved."""
        ...

    def figures(self, model: AttentionModel[Any]) -> Iterator["Figure"]:
        """The attention on a few sources of dev, the same ones each time."""
        ...

    def settle(self, folder: Path, *, num_workers: int = 0) -> object:
        """Give a trained model the decoding that scores best on dev, and its scores with that."""
        ...
