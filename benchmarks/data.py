"""Speed of data loading: annotations, JPEG decoders, and the training loader.

    python benchmarks/data.py --captions captions_val2017.json --images train2017

`--captions` is any COCO annotation file with captions: its images are repeated under new ids until there
are as many as in COCO's train2017 (118,287). Measurements are repeated; the tables have their median, minimum
and maximum.
"""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report
from captioner.config import PreprocessConfig

NUM_PICTURES = 118_287
IMAGE_SIZE_PX = 260
PREPROCESS = PreprocessConfig(
    size_px=IMAGE_SIZE_PX, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bicubic"
)


def write_coco(captions: Path, root: Path, num_pictures: int) -> None:
    """Write a train split of a given size, with real captions and empty picture files."""
    content = json.loads(captions.read_text())
    texts_of: dict[int, list[str]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        texts_of[annotation["image_id"]].append(annotation["caption"])
    texts = list(texts_of.values())
    images, annotations = [], []
    folder = root / "train2017"
    folder.mkdir()
    (root / "annotations").mkdir()
    for number in range(num_pictures):
        name = f"{number:012}.jpg"
        (folder / name).touch()
        images.append(dict(content["images"][number % len(texts)], id=number, file_name=name))
        for text in texts[number % len(texts)]:
            annotations.append({"image_id": number, "id": len(annotations), "caption": text})
    path = root / "annotations" / "captions_train2017.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))


def prepare_records(root: Path, results: "multiprocessing.Queue[dict[str, float]]") -> None:
    """Do everything that train.py does with captions before its first batch. Runs in its own process."""
    from captioner.data.pictures import CachedRecords, CaptionDataset
    from captioner.images.geometry import Preprocess
    from captioner.vocabulary import Vocabulary
    from datasets.checks import find_problems
    from datasets.coco import Coco

    after_imports_mb = peak_mb()
    times = [time.perf_counter()]
    records = Coco(root=root).read(["train"])
    times.append(time.perf_counter())
    problems = find_problems(records)
    times.append(time.perf_counter())
    vocabulary = Vocabulary.build((text for record in records for text in record.captions), min_count=5)
    times.append(time.perf_counter())
    dataset = CaptionDataset(
        split=CachedRecords(records=records, features=np.zeros((0, 81, 1280), np.float16)),
        preprocess=Preprocess(PREPROCESS),
        vocabulary=vocabulary,
        max_words=20,
    )
    times.append(time.perf_counter())
    assert len(dataset) == len(records)
    assert not problems, problems.keys()
    names = ("read records", "find problems", "build vocabulary", "encode captions")
    seconds = dict(zip(names, np.diff(times).tolist(), strict=True))
    results.put(
        {
            "pictures": len(records),
            "captions": sum(len(record.captions) for record in records),
            **{f"{name}, s": value for name, value in seconds.items()},
            "total, s": times[-1] - times[0],
            "peak memory, MB": peak_mb(),
            "peak memory after imports, MB": after_imports_mb,
        }
    )


def peak_mb() -> float:
    """The largest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def records_rows(captions: Path, repeats: int) -> dict[str, list[float]]:
    context = multiprocessing.get_context("spawn")
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_coco(captions, Path(folder), NUM_PICTURES)
        for _ in range(repeats):
            results = context.Queue()
            process = context.Process(target=prepare_records, args=(Path(folder), results))
            process.start()
            for name, value in results.get(timeout=600).items():
                rows.setdefault(name, []).append(value)
            process.join()
    return rows


def decoders() -> dict[str, Callable[[Path], object]]:
    """Functions that decode a JPEG, by name."""
    import torch
    from torchvision.io import ImageReadMode, decode_image, read_file

    from captioner.images.reading import load_image

    torch.set_num_threads(1)
    return {
        "Pillow, full size": load_image,
        "Pillow, draft mode": lambda path: load_image(path, enough_px=IMAGE_SIZE_PX),
        "torchvision": lambda path: decode_image(read_file(str(path)), ImageReadMode.RGB),
    }


def decoder_rows(paths: list[Path], repeats: int) -> dict[str, list[float]]:
    """Pictures per second of each decoder on one thread; measurements are interleaved."""
    rows: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, decode in decoders().items():
            started = time.perf_counter()
            for path in paths:
                decode(path)
            rows.setdefault(name, []).append(len(paths) / (time.perf_counter() - started))
    return rows


def loader_rows(paths: list[Path], repeats: int, epochs: int = 5) -> dict[str, list[float]]:
    """Augmented pictures per second of the training loader, by its number of workers."""
    from captioner.data.augmentation import Augmentation
    from captioner.data.batching import load_batches
    from captioner.data.epoch_order import epoch_batches
    from captioner.data.pictures import CachedRecords, CaptionDataset
    from captioner.images.geometry import Preprocess
    from captioner.records import CaptionedImage
    from captioner.vocabulary import Vocabulary

    records = [
        CaptionedImage(image_id=path.name, source=path, captions=("a dog runs",), split="train")
        for path in paths * epochs
    ]
    dataset = CaptionDataset(
        split=CachedRecords(records=records, features=np.zeros((0, 81, 1280), np.float16)),
        preprocess=Preprocess(PREPROCESS),
        vocabulary=Vocabulary.build(["a dog runs"], min_count=1),
        max_words=20,
        augmentation=Augmentation(seed=0, size_px=IMAGE_SIZE_PX),
    )
    rows: dict[str, list[float]] = {}
    for repeat in range(repeats):
        for num_workers in (0, 1, 2):
            batches = epoch_batches(len(records), batch_size=32, seed=0, epoch=repeat)
            started = time.perf_counter()
            num_loaded = sum(
                len(batch.ids) for batch in load_batches(dataset, batches, num_workers=num_workers)
            )
            rows.setdefault(f"{num_workers} workers", []).append(num_loaded / (time.perf_counter() - started))
    return rows


def enlarged(paths: Iterable[Path], folder: Path) -> Iterator[Path]:
    """Copies of the pictures at the size of a phone's photos, 4,000 x 3,000."""
    from PIL import Image

    for path in paths:
        large = folder / path.name
        Image.open(path).convert("RGB").resize((4000, 3000)).save(large, quality=90)
        yield large


def main(*, captions: Path, images: Path, repeats: int = 3, json_out: Path | None = None) -> None:
    """Measure, and print four tables.

    Args:
        captions: COCO annotation file with captions.
        images: Folder of JPEGs.
        repeats: Number of measurements.
        json_out: Also write all values to this file.
    """
    paths = sorted(images.glob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        measured = {
            f"preparation of {NUM_PICTURES:,} pictures": records_rows(captions, repeats),
            f"decoding {len(paths)} pictures on one thread, pictures per second": decoder_rows(
                paths, repeats
            ),
            "decoding 4,000 x 3,000 pixels on one thread, pictures per second": decoder_rows(
                list(enlarged(paths[:8], Path(folder))), repeats
            ),
            "training loader with augmentation, pictures per second": loader_rows(paths, repeats),
        }
    report(measured, json_out)


if __name__ == "__main__":
    tyro.cli(main)
