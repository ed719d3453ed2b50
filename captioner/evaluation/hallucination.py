"""Objects that captions make up, and those that they find (CHAIR).

Rohrbach et al. 2018, "Object Hallucination in Image Captioning".
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from captioner.errors import CaptionerError
from captioner.objects.categories import mentions
from captioner.vocabulary import tokenize


@dataclass(frozen=True, kw_only=True)
class Hallucination:
    """How much of what captions name is not in their pictures, as shares in [0, 1].

    `chair_i` is the share of the named objects that are not there, None if none is named, and `chair_s` the
    share of the captions that name such a one. `recall` is the share of the objects that are there and are
    named. An object is a category of COCO; for `chair_i` each naming of it counts, for `recall` it counts
    once per picture.
    """

    num_named: int
    chair_i: float | None
    chair_s: float
    recall: float

    def named(self) -> dict[str, str]:
        """The values as printed."""
        chair_i = "not computed (no object is named)" if self.chair_i is None else f"{self.chair_i:.3f}"
        return {
            "CHAIR_i": f"{chair_i} ({self.num_named:,} objects named)",
            "CHAIR_s": f"{self.chair_s:.3f}",
            "object recall": f"{self.recall:.3f}",
        }


def categories_in(texts: Collection[str]) -> set[str]:
    """The categories that texts name."""
    return {mention.category for text in texts for mention in mentions(tokenize(text))}


def find_hallucination(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    annotated: Mapping[str, Collection[str]],
) -> Hallucination:
    """Compare captions with what is in their pictures; all mappings are by picture id.

    `annotated` are the categories of the annotated objects. As in the paper, what a reference names is in the
    picture too, because annotators leave objects out.

    Raises:
        CaptionerError: no picture has an object.
    """
    num_named = num_absent = num_false = num_found = num_present = 0
    for image_id, text in captions.items():
        present = categories_in(references[image_id]) | set(annotated[image_id])
        named = [mention.category for mention in mentions(tokenize(text))]
        absent = [category for category in named if category not in present]
        num_named, num_absent = num_named + len(named), num_absent + len(absent)
        num_false += bool(absent)
        num_found, num_present = num_found + len(present & set(named)), num_present + len(present)
    if not num_present:
        raise CaptionerError("no picture has an object that is annotated or named by a reference")
    return Hallucination(
        num_named=num_named,
        chair_i=num_absent / num_named if num_named else None,
        chair_s=num_false / len(captions),
        recall=num_found / num_present,
    )
