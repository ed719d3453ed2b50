"""What is said of a model's captions: scores against references, and how varied they are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from captioner.images import ImageError
from captioner.inference import Captioner
from captioner.metrics import Scores, score_captions
from captioner.records import CaptionedImage
from captioner.vocabulary import tokenize


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of captions with figures of their variety. Shares are in 0..1.

    `vocabulary_size` counts the different words in all captions, `mean_length` is in words, and
    `copied_share` is of the captions that stand word for word in train; it is None without train's.
    """

    num_pictures: int
    scores: Scores
    vocabulary_size: int
    mean_length: float
    distinct_share: float
    copied_share: float | None

    def __str__(self) -> str:
        copied = "not computed (needs train captions)"
        if self.copied_share is not None:
            copied = f"{self.copied_share:.1%}"
        lines = {
            "pictures": f"{self.num_pictures:,}",
            **self.scores.named(),
            "vocabulary": f"{self.vocabulary_size:,} words",
            "mean length": f"{self.mean_length:.1f} words",
            "distinct captions": f"{self.distinct_share:.1%}",
            "copied from train": copied,
        }
        return "\n".join(f"{name:<18} {value}" for name, value in lines.items())


def caption_records(
    captioner: Captioner, records: Sequence[CaptionedImage], *, batch_size: int = 32
) -> dict[str, str]:
    """Captions by image id, exactly as caption.py prints them.

    Raises:
        ImageError: a picture cannot be read.
    """
    sources = (record.source for record in records)
    batches = captioner.caption_files(sources, batch_size=batch_size)
    results = (result for batch in batches for result in batch)
    captions = {}
    bar = tqdm(results, total=len(records), desc="captioning", unit=" pictures", delay=2)
    for record, result in zip(records, bar, strict=True):
        if isinstance(result, ImageError):
            raise result
        captions[record.image_id] = result.text
    return captions


def evaluate_captions(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    train_captions: Iterable[str] | None = None,
) -> Evaluation:
    """Score captions and describe them; both mappings are by image id.

    Raises:
        captioner.metrics.MetricsError: a picture lacks a caption or a reference.
    """
    scores = score_captions(captions, references)
    words_of = {image_id: tuple(tokenize(text)) for image_id, text in captions.items()}
    copied_share = None
    if train_captions is not None:
        seen = {tuple(tokenize(text)) for text in train_captions}
        copied_share = sum(words in seen for words in words_of.values()) / len(captions)
    return Evaluation(
        num_pictures=len(captions),
        scores=scores,
        vocabulary_size=len({word for words in words_of.values() for word in words}),
        mean_length=sum(map(len, words_of.values())) / len(captions),
        distinct_share=len(set(captions.values())) / len(captions),
        copied_share=copied_share,
    )
