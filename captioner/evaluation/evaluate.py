"""Evaluation of captions: scores against references, and statistics."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from captioner.config import DecodingOptions
from captioner.errors import ImageError, reject_string
from captioner.evaluation.cider import CiderD
from captioner.evaluation.hallucination import Hallucination, find_hallucination
from captioner.evaluation.metrics import Scores, ptb_tokenize, score_captions
from captioner.evaluation.statistics import CaptionStatistics
from captioner.inference import Captioner
from captioner.records import CaptionedImage
from captioner.tokenize import are_spaceless, tokenize


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores and statistics of captions; the share (0..1) of them that occur verbatim in train, None without
    train's captions; and how much is made up, None without annotated objects."""

    num_pictures: int
    scores: Scores
    statistics: CaptionStatistics
    copied_share: float | None
    hallucination: Hallucination | None = None
    has_spaces: bool = True
    """Whether words are separated by spaces; each character of other scripts is scored as a word."""

    def __str__(self) -> str:
        copied = "not computed (needs train captions)"
        if self.copied_share is not None:
            copied = f"{self.copied_share:.1%}"
        lines = {
            "pictures": f"{self.num_pictures:,}",
            **({} if self.has_spaces else {"words": "characters, as in a script without spaces"}),
            **self.scores.named(),
            **self.statistics.named(),
            "copied from train": copied,
            **({} if self.hallucination is None else self.hallucination.named()),
        }
        return "\n".join(f"{name:<18} {value}" for name, value in lines.items())


def caption_records(
    captioner: Captioner,
    records: Sequence[CaptionedImage],
    *,
    batch_size: int = 32,
    options: DecodingOptions | None = None,
) -> dict[str, str]:
    """Captions by image id, exactly as caption.py prints them; `options` are by default the model's own.

    Raises:
        ImageError: a picture cannot be read.
    """
    sources = (record.source for record in records)
    batches = captioner.caption_files(sources, batch_size=batch_size, options=options)
    results = (result for batch in batches for result in batch)
    captions = {}
    bar = tqdm(results, total=len(records), desc="captioning", unit=" pictures", delay=2, disable=None)
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
    annotated: Mapping[str, Collection[str]] | None = None,
) -> Evaluation:
    """Score captions and compute their statistics; all mappings are by image id.

    `annotated` are the categories of the objects in each picture, to find those that captions make up.

    Raises:
        CaptionerError: a picture lacks a caption or a reference.
    """
    if train_captions is not None:
        reject_string(train_captions, "train_captions")
    scores = score_captions(captions, references)
    copied_share = None
    if train_captions is not None:
        seen = {tuple(tokenize(text)) for text in train_captions}
        copied_share = sum(tuple(tokenize(text)) in seen for text in captions.values()) / len(captions)
    return Evaluation(
        num_pictures=len(captions),
        scores=scores,
        statistics=CaptionStatistics.from_captions(captions.values()),
        copied_share=copied_share,
        has_spaces=not are_spaceless(map(tokenize, captions.values())),
        hallucination=None if annotated is None else find_hallucination(captions, references, annotated),
    )


class CiderScorer:
    """CIDEr-D in percent of single texts, as papers and `captioner evaluate` state it."""

    def __init__(self, documents: Iterable[Sequence[str]]) -> None:
        """`documents` are all references by picture, which give the document frequencies."""
        self._scorer = CiderD([ptb_tokenize(text) for text in texts] for texts in documents)

    def __call__(self, text: str, references: Sequence[str]) -> float:
        words = [ptb_tokenize(reference) for reference in references]
        return 100 * self._scorer.scores([ptb_tokenize(text)], words)[0]
