"""Objects that captions name although they are not in the picture (CHAIR).

Rohrbach et al. 2018, "Object Hallucination in Image Captioning". The words that name an object are those of
`captioner.objects.categories`, not the paper's list, so values differ from those in papers.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from captioner.objects.categories import mentions, table
from captioner.tokenize import tokenize


@dataclass(frozen=True, kw_only=True)
class Hallucination:
    """How much of what captions name is not in their pictures, as shares in [0, 1].

    `chair_i` is the share of the named objects that are not there, None if none is named, and `chair_s` the
    share of the captions that name one of those. `recall` is the share of the objects in the pictures that
    are named, None if there are none. An object is a category of COCO; for `chair_i` it counts each time that
    it is named, for `recall` once per picture.
    """

    num_named: int
    chair_i: float | None
    chair_s: float
    recall: float | None

    def named(self) -> dict[str, str]:
        """The values as printed."""
        chair_i = "not computed (no object is named)" if self.chair_i is None else f"{self.chair_i:.3f}"
        return {
            "CHAIR_i": f"{chair_i} ({self.num_named:,} objects named)",
            "CHAIR_s": f"{self.chair_s:.3f}",
            "object recall": "not computed (no objects)" if self.recall is None else f"{self.recall:.3f}",
        }


def named_objects(text: str) -> list[str]:
    """The category of each object that a caption names, once for each mention."""
    return [mention.category for mention in mentions(tokenize(text))]


def present_objects(references: Collection[str], annotated: Collection[str]) -> set[str]:
    """The categories in a picture: as in the paper, what a reference names is there too, because annotators
    leave objects out."""
    return {*annotated, *(category for text in references for category in named_objects(text))}


def find_hallucination(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    annotated: Mapping[str, Collection[str]],
) -> Hallucination:
    """Compare captions with what is in their pictures; all mappings are by picture id.

    `annotated` are the categories of the annotated objects, of which those count that some word names.
    """
    nameable = {category for category, names in table().names.items() if names}
    num_named = num_absent = num_false = num_found = num_present = 0
    for image_id, text in captions.items():
        present = present_objects(references[image_id], nameable & set(annotated[image_id]))
        named = named_objects(text)
        absent = [category for category in named if category not in present]
        num_named, num_absent = num_named + len(named), num_absent + len(absent)
        num_false += bool(absent)
        num_found, num_present = num_found + len(present & set(named)), num_present + len(present)
    return Hallucination(
        num_named=num_named,
        chair_i=num_absent / num_named if num_named else None,
        chair_s=num_false / len(captions),
        recall=num_found / num_present if num_present else None,
    )
