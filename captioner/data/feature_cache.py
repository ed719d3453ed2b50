"""Cache of computed features on disk, resumable and never stale.

A cache is a folder with one memory-mapped array in half precision and a key.json that says what it was
computed from: the backbone, a digest of its weights, the preprocessing, and the pictures. The folder's name
is a digest of that key, so that any change leads to another folder. While it is computed it has another name
and a count of the pictures that are done, from which an interrupted computation resumes.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
from filelock import FileLock
from jaxtyping import Float16
from tqdm import tqdm

from captioner.atomic import publish_folder, replace_text
from captioner.backends.batch_encoder import fast_batch_encoder
from captioner.config import GridConfig, PreprocessConfig
from captioner.data.pictures import CachedRecords
from captioner.errors import CaptionerError, ImageError
from captioner.images.geometry import Preprocess
from captioner.images.prefetch import map_in_threads, prefetch_batches
from captioner.images.sources import StoredPicture, file_fingerprint
from captioner.model.encoder import Encoder
from captioner.records import CaptionedImage

CACHE_VERSION = 2
"""Part of the key; it grows when features are computed or stored differently."""

_FEATURES, _KEY, _NUM_DONE = "features.npy", "key.json", "num_done"
_SAVED_EVERY = 512  # pictures: what an interruption loses at most

_logger = logging.getLogger(__name__)


def read_ahead(features: np.ndarray) -> None:
    """Load a cache into the system's page cache, in the background, if there is room for it.

    Training reads features in random order, which on a cold file is many times slower than one
    sequential read.
    """
    if not isinstance(features, np.memmap) or features.filename is None or not hasattr(os, "sysconf"):
        return
    path = Path(features.filename)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if path.stat().st_size > 0.5 * memory:
        _logger.info("%s is larger than half the memory; random reads may slow training", path)
        return

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            while file.read(2**24):
                pass

    Thread(target=read, daemon=True).start()


def cached_splits(
    groups: Sequence[Sequence[CaptionedImage]],
    *,
    encoder: Encoder,
    preprocess: PreprocessConfig,
    grid: GridConfig,
    cache_dir: Path,
    limit_gb: float | None,
) -> list[CachedRecords]:
    """Each group of records with the features of as many of its pictures as the cache may hold, in turn.

    The size of the cache is logged before any of it is computed. Raises: as `cached_features`.
    """
    bytes_per_picture = grid.num_cells * encoder.annotation_dim * np.dtype(np.float16).itemsize
    num_pictures = sum(map(len, groups))
    room = num_pictures if limit_gb is None else min(num_pictures, int(limit_gb * 1e9 / bytes_per_picture))
    _logger.info(
        "cache: features of %s of %s pictures (%d x %d x %s, half precision) take %.2f GB in %s; "
        "--cache-limit-gb limits it, 0 disables it",
        f"{room:,}",
        f"{num_pictures:,}",
        grid.rows,
        grid.cols,
        f"{encoder.annotation_dim:,}",
        room * bytes_per_picture / 1e9,
        cache_dir,
    )
    splits = []
    for records in groups:
        cached = records[:room]
        room -= len(cached)
        features = (
            cached_features(
                records=cached, encoder=encoder, preprocess=preprocess, grid=grid, cache_dir=cache_dir
            )
            if cached
            else np.zeros((0, grid.num_cells, encoder.annotation_dim), np.float16)
        )
        splits.append(CachedRecords(records=records, features=features))
    return splits


def cached_features(
    *,
    records: Sequence[CaptionedImage],
    encoder: Encoder,
    preprocess: PreprocessConfig,
    grid: GridConfig,
    cache_dir: Path,
    batch_size: int = 32,
) -> Float16[np.ndarray, "images cells annotation"]:
    """The features of the records' pictures, in their order, computed unless the cache has them.

    An interrupted computation resumes; of two processes that need the same cache one computes it.

    Raises:
        CaptionerError: the disk has no room, or the encoder gives values that half precision cannot hold.
        ImageError: a picture cannot be read.
    """
    key = _key(records, encoder, preprocess)
    digest = hashlib.sha256(msgspec.json.encode(key, order="sorted")).hexdigest()[:16]
    folder = cache_dir / f"{key['backbone']}-{preprocess.size_px}px-{digest}"
    if not folder.is_dir():
        shape = (len(records), grid.num_cells, encoder.annotation_dim)
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(cache_dir / f".{folder.name}.lock"):
                if not folder.is_dir():  # another process may have computed it meanwhile
                    partial = _prepare_partial(folder, shape, key)
                    _compute(partial, records, encoder, Preprocess(preprocess), batch_size)
                    publish_folder(partial, folder)
                    (folder / _NUM_DONE).unlink()
        except OSError as error:
            raise CaptionerError(
                f"cannot write {cache_dir}: {error.strerror or error}; make room or choose another folder "
                "with --cache-dir"
            ) from error
    return np.load(folder / _FEATURES, mmap_mode="r")


def weights_digest(encoder: Encoder) -> str:
    """A digest of the CNN's weights, and of the stage that it ends with, if that may drop none of them."""
    weights = hashlib.sha256()
    if encoder.stage is not None:
        weights.update(f"stage {encoder.stage}".encode())
    for name, value in encoder.cnn.state_dict().items():
        weights.update(name.encode())
        weights.update(value.cpu().numpy().tobytes())
    return weights.hexdigest()


def _key(records: Sequence[CaptionedImage], encoder: Encoder, preprocess: PreprocessConfig) -> dict[str, Any]:
    return {
        "version": CACHE_VERSION,
        "backbone": encoder.cnn.default_cfg["architecture"],
        "weights": weights_digest(encoder),
        "preprocess": asdict(preprocess),
        "pictures": [(record.image_id, _fingerprint(record.source)) for record in records],
    }


def _fingerprint(source: StoredPicture) -> str:
    """What changes with the picture: size and time of a file, or what its archive knows of it."""
    if isinstance(source, Path):
        try:
            return file_fingerprint(source)
        except OSError:
            return "missing"  # computing the features will name the file
    return source.fingerprint


def _prepare_partial(folder: Path, shape: tuple[int, int, int], key: dict[str, Any]) -> Path:
    """The folder in which the cache is computed, new or left by an interruption. Raises: OSError."""
    partial = folder.with_name(f".{folder.name}.partial")
    if (partial / _NUM_DONE).is_file():
        return partial
    shutil.rmtree(partial, ignore_errors=True)
    size = int(np.prod(shape)) * np.dtype(np.float16).itemsize
    _check_room(folder.parent, size)
    partial.mkdir()
    (partial / _KEY).write_bytes(msgspec.json.format(msgspec.json.encode(key), indent=1))
    np.lib.format.open_memmap(partial / _FEATURES, mode="w+", dtype=np.float16, shape=shape).flush()
    if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process
        with (partial / _FEATURES).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    (partial / _NUM_DONE).write_text("0")
    return partial


def _check_room(cache_dir: Path, size: int) -> None:
    free = shutil.disk_usage(cache_dir).free
    if free < size:
        leftovers = sorted(map(str, cache_dir.glob(".*.partial")))
        hint = f" ({', '.join(leftovers)} may be removed if no run needs it)" if leftovers else ""
        raise CaptionerError(
            f"the features take {size / 1e9:.2f} GB but {cache_dir} has {free / 1e9:.2f} GB free; "
            f"make room{hint} or choose another disk with --cache-dir"
        )


def _compute(
    partial: Path,
    records: Sequence[CaptionedImage],
    encoder: Encoder,
    preprocess: Preprocess,
    batch_size: int,
) -> None:
    """Compute what is missing, recording from time to time how many pictures are safely on disk."""
    features = np.lib.format.open_memmap(partial / _FEATURES, mode="r+")
    done = int((partial / _NUM_DONE).read_text())
    _logger.info("computing the features of %s pictures, %s are done", f"{len(records):,}", f"{done:,}")
    left = [record.source for record in records[done:]]
    runner = fast_batch_encoder(encoder, size_px=preprocess.config.size_px, num_pictures=len(left))

    def encode(batch: Sequence[tuple[StoredPicture, np.ndarray | ImageError]]) -> Float16[np.ndarray, "..."]:
        pictures = []
        for _, picture in batch:
            if isinstance(picture, ImageError):
                raise picture
            pictures.append(picture)
        return runner.encode(np.stack(pictures)).astype(np.float16)

    unsaved = 0
    loaded = prefetch_batches(left, preprocess.load, batch_size=batch_size)
    encoded = map_in_threads(encode, loaded, num_threads=runner.num_threads, ahead=runner.num_threads)
    with (
        closing(encoded),
        tqdm(total=len(records), initial=done, desc="features", unit=" pictures", delay=2) as progress,
    ):
        for half in encoded:
            if not np.isfinite(half).all():
                shutil.rmtree(partial)
                raise CaptionerError(
                    "the encoder gives values that half precision cannot hold; check its weights"
                )
            features[done : done + len(half)] = half
            done, unsaved = done + len(half), unsaved + len(half)
            if unsaved >= _SAVED_EVERY or done == len(records):
                features.flush()
                replace_text(partial / _NUM_DONE, str(done))
                unsaved = 0
            progress.update(len(half))
