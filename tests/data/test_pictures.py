"""Batches: what they contain, in which order, and which process gets them."""

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from captioner.data.augmentation import Augmentation
from captioner.data.batching import collate, load_batches
from captioner.data.epoch_order import SampleKey, epoch_batches, in_order
from captioner.data.pictures import CachedRecords, CaptionDataset
from captioner.errors import CaptionerError, ImageError
from captioner.images.geometry import Preprocess
from captioner.model.captioning import CaptioningModel
from captioner.model.encoder import Encoder
from captioner.records import CaptionedImage
from captioner.vocabulary import END, Vocabulary
from tests.conftest import TINY_SIZE_PX, noise_picture

CAPTIONS = [("a dog",), ("a", "a dog runs far"), ("a dog runs", "a", "dog"), ("far",)]
VOCABULARY = Vocabulary.build(["a dog runs far"], min_count=1)


@pytest.fixture
def records(tmp_path: Path) -> list[CaptionedImage]:
    records = []
    for number, captions in enumerate(CAPTIONS):
        path = tmp_path / f"{number}.png"
        noise_picture(number).save(path)
        records.append(CaptionedImage(image_id=path.name, source=path, captions=captions, split="train"))
    return records


def dataset_of(records: list[CaptionedImage], encoder: Encoder, *, num_cached: int) -> CaptionDataset:
    preprocess = Preprocess(encoder.preprocess_config(TINY_SIZE_PX))
    pixels = np.stack([preprocess.load(record.source) for record in records])
    features = encoder.annotate(torch.from_numpy(pixels)).numpy().astype(np.float16)
    return CaptionDataset(
        split=CachedRecords(records=records, features=features[:num_cached]),
        preprocess=preprocess,
        vocabulary=VOCABULARY,
        max_words=9,
    )


def test_batch_contains_each_picture_once_longest_caption_first(
    records: list[CaptionedImage], encoder: Encoder
) -> None:
    dataset = dataset_of(records, encoder, num_cached=4)
    batch = collate([dataset[SampleKey(0, index)] for index in range(4)], stack=dataset.stack)
    assert batch.ids == ("1.png", "2.png", "0.png", "3.png")
    assert batch.lengths.tolist() == [[5, 2, 0], [4, 2, 2], [3, 0, 0], [2, 0, 0]]
    assert batch.tokens.shape == (4, 3, 6)


@pytest.mark.parametrize("num_cached", [0, 1, 3, 4])
def test_annotations_are_the_same_from_the_cache_and_from_the_pictures(
    records: list[CaptionedImage], encoder: Encoder, model: CaptioningModel, num_cached: int
) -> None:
    dataset = dataset_of(records, encoder, num_cached=num_cached)
    batch = collate([dataset[SampleKey(0, index)] for index in range(4)], stack=dataset.stack)
    assert (len(batch.sources.features), len(batch.sources.images)) == (num_cached, 4 - num_cached)
    whole = dataset_of(records, encoder, num_cached=4).split.features
    expected = np.stack([whole[int(image_id[0])] for image_id in batch.ids])
    found = model.encoder.annotations_of(batch.sources)[0].numpy()
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=2e-3, atol=2e-3)


def test_each_picture_has_its_own_encoded_captions(records: list[CaptionedImage], encoder: Encoder) -> None:
    dataset = dataset_of(records, encoder, num_cached=0)
    for index, captions in enumerate(CAPTIONS):
        assert [tokens.tolist() for tokens in dataset.captions[index]] == [
            VOCABULARY.encode(caption) for caption in captions
        ]


def test_captions_over_the_limit_are_truncated_and_have_no_end_token(
    records: list[CaptionedImage], encoder: Encoder
) -> None:
    dataset = CaptionDataset(
        split=CachedRecords(records=records[1:2], features=np.zeros((1, 4, 3), np.float16)),
        preprocess=Preprocess(encoder.preprocess_config(TINY_SIZE_PX)),
        vocabulary=VOCABULARY,
        max_words=2,
    )
    whole, truncated = dataset.captions[0]
    assert len(truncated) == 3
    assert END not in truncated
    assert whole[-1] == END


def test_dataset_is_pickled_without_its_cache(
    records: list[CaptionedImage], encoder: Encoder, tmp_path: Path
) -> None:
    dataset = dataset_of(records, encoder, num_cached=3)
    large = np.lib.format.open_memmap(
        tmp_path / "features.npy", mode="w+", dtype=np.float16, shape=(3, 4, 100_000)
    )
    large[:] = np.arange(3)[:, None, None]
    large.flush()
    dataset.split = replace(dataset.split, features=np.load(tmp_path / "features.npy", mmap_mode="r"))
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 20_000
    copy = pickle.loads(pickled)
    assert isinstance(copy.split.features, np.memmap)
    for index in range(4):
        assert torch.equal(copy[SampleKey(0, index)].source, dataset[SampleKey(0, index)].source)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_give_the_same_batches_in_the_same_order(
    records: list[CaptionedImage], encoder: Encoder
) -> None:
    dataset = dataset_of(records, encoder, num_cached=2)
    dataset.augmentation = Augmentation(seed=0, size_px=TINY_SIZE_PX)
    batches = epoch_batches(4, batch_size=2, seed=0, epoch=1)
    here = list(load_batches(dataset, batches, num_workers=0))
    there = list(load_batches(dataset, batches, num_workers=2))
    assert [batch.ids for batch in here] == [batch.ids for batch in there]
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.sources.features, other.sources.features)
        assert torch.equal(one.sources.images, other.sources.images)
        assert torch.equal(one.tokens, other.tokens)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_picture_that_cannot_be_read_is_reported_whichever_process_reads_it(
    records: list[CaptionedImage], encoder: Encoder, num_workers: int
) -> None:
    dataset = dataset_of(records, encoder, num_cached=0)
    Path(str(records[2].source)).write_text("no picture")
    with pytest.raises(ImageError, match=r"2\.png: not a picture"):
        list(load_batches(dataset, in_order(4, batch_size=4), num_workers=num_workers))


def pictures_of(batches: list[list[SampleKey]]) -> list[int]:
    return [key.index for batch in batches for key in batch]


@pytest.mark.parametrize("num_pictures", [24, 25, 47, 100])
def test_an_epoch_has_every_picture_once_in_steps_of_even_size(num_pictures: int) -> None:
    batches = epoch_batches(num_pictures, batch_size=24, seed=3, epoch=5)
    assert sorted(pictures_of(batches)) == list(range(num_pictures))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= 24
    assert max(sizes) - min(sizes) <= 1
    assert {key.epoch for batch in batches for key in batch} == {5}


def test_order_depends_on_the_seed_and_the_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return pictures_of(epoch_batches(50, batch_size=8, seed=seed, epoch=epoch))

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize(("num_processes", "micro_batches"), [(1, 3), (2, 1), (3, 2)])
def test_a_step_has_the_same_pictures_however_it_is_split(num_processes: int, micro_batches: int) -> None:
    alone = epoch_batches(50, batch_size=12, seed=0, epoch=0)
    by_process = [
        epoch_batches(
            50,
            batch_size=12,
            seed=0,
            epoch=0,
            micro_batches=micro_batches,
            process=process,
            num_processes=num_processes,
        )
        for process in range(num_processes)
    ]
    for step, pictures in enumerate(alone):
        shares = [own[step * micro_batches : (step + 1) * micro_batches] for own in by_process]
        assert Counter(key for share in shares for batch in share for key in batch) == Counter(pictures)
        assert all(batch for share in shares for batch in share)


def test_step_that_is_too_small_to_be_split_is_refused() -> None:
    with pytest.raises(
        CaptionerError,
        match=r"a step of 12 samples is too small for 13 processes with 1 micro-batches each; raise --batch",
    ):
        epoch_batches(25, batch_size=24, seed=0, epoch=0, num_processes=13)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
def test_validation_has_every_picture_once_however_it_is_split(num_processes: int) -> None:
    shares = [
        in_order(5, batch_size=2, process=process, num_processes=num_processes)
        for process in range(num_processes)
    ]
    assert sorted(index for share in shares for index in pictures_of(share)) == list(range(5))
