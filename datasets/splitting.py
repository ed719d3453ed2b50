"""Random splits by picture, for data without splits."""

import hashlib
from collections.abc import Iterable

from captioner.records import SplitName


def split_by_picture(
    pictures: Iterable[str], *, num_dev: int, num_test: int, seed: int
) -> dict[str, SplitName]:
    """Give `num_dev` pictures to dev, `num_test` to test and the rest to train.

    The choice depends only on their names and the seed, not on their order or on the machine. All captions
    of a picture are in one split.
    """

    def rank(picture: str) -> bytes:
        return hashlib.sha256(f"{seed}:{picture}".encode(errors="surrogateescape")).digest()

    ranked = sorted(set(pictures), key=rank)
    split_of: dict[str, SplitName] = dict.fromkeys(ranked, "train")
    split_of.update(dict.fromkeys(ranked[:num_dev], "dev"))
    split_of.update(dict.fromkeys(ranked[num_dev : num_dev + num_test], "test"))
    return split_of
