"""Conversion of Flickr8k to COCO's layout, to compare the two presets.

python benchmarks/flickr8k_as_coco.py --root flickr8k --out flickr8k-as-coco
python train.py coco --root flickr8k-as-coco --out runs/coco-on-flickr8k
"""

import json
import sys
from pathlib import Path

import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from captioner.records import SplitName
from datasets.coco import COCO_NAME
from datasets.flickr import Flickr8k

FIRST_ID: dict[SplitName, int] = {"train": 100_000, "dev": 200_000}


def main(*, root: Path, out: Path) -> None:
    """Write annotations/captions_{train,val}2017.json and the pictures of both splits.

    Args:
        root: Folder of Flickr8k in its official layout.
        out: Folder to write to.
    """
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    for split, name in COCO_NAME.items():
        folder = out / f"{name}2017"
        folder.mkdir(exist_ok=True)
        images, annotations = [], []
        records = Flickr8k(root=root).read([split])
        for image_id, record in enumerate(tqdm(records, desc=name, unit=" pictures"), FIRST_ID[split]):
            file_name = f"{image_id:012}.jpg"
            with record.source.open("rb") as file:
                (folder / file_name).write_bytes(file.read())
            images.append({"id": image_id, "file_name": file_name})
            annotations += [
                {"id": image_id * 10 + number, "image_id": image_id, "caption": caption}
                for number, caption in enumerate(record.captions)
            ]
        path = out / "annotations" / f"captions_{name}2017.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations}))


if __name__ == "__main__":
    tyro.cli(main)
