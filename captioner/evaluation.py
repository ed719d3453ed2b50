"""What is said of a model's captions: scores against references, and how varied they are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from captioner.config import DecodingConfig
from captioner.images import ImageError
from captioner.inference import Captioner
from captioner.metrics import Scores, score_captions
from captioner.records import CaptionedImage
from captioner.vocabulary import tokenize
from captioner.wording import Wording


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of captions, how they are worded, and the share (0..1) of them that stand word for word in
    train; it is None without train's captions."""

    num_pictures: int
    scores: Scores
    wording: Wording
    copied_share: float | None

    def __str__(self) -> str:
        copied = "not computed (needs train captions)"
        if self.copied_share is not None:
            copied = f"{self.copied_share:.1%}"
        lines = {
            "pictures": f"{self.num_pictures:,}",
            **self.scores.named(),
            **self.wording.named(),
            "copied from train": copied,
        }
        return "\n".join(f"{name:<18} {value}" for name, value in lines.items())


def caption_records(
    captioner: Captioner,
    records: Sequence[CaptionedImage],
    *,
    batch_size: int = 32,
    decoding: DecodingConfig | None = None,
) -> dict[str, str]:
    """Captions by image id, exactly as caption.py prints them; `decoding` is by default the model's own.

    Raises:
        ImageError: a picture cannot be read.
    """
    sources = (record.source for record in records)
    batches = captioner.caption_files(sources, batch_size=batch_size, decoding=decoding)
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
    copied_share = None
    if train_captions is not None:
        seen = {tuple(tokenize(text)) for text in train_captions}
        copied_share = sum(tuple(tokenize(text)) in seen for text in captions.values()) / len(captions)
    return Evaluation(
        num_pictures=len(captions),
        scores=scores,
        wording=Wording.of(captions.values()),
        copied_share=copied_share,
    )
