"""Where computed grids are kept, and when they are stale.

A cache is a folder with one memory-mapped array in half precision and a key.json that says what it was
made of: the backbone, a digest of its weights, the preparation of the pictures, and the pictures. The
folder's name is a digest of that key, so that a change in any part leads to another folder and a stale
one is never read.
"""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import psutil
import torch
from jaxtyping import Float16
from tqdm import tqdm

from captioner.config import GridConfig, PreprocessConfig
from captioner.data import Split
from captioner.encoder import Encoder
from captioner.errors import CaptionerError
from captioner.images import ImageError, Preprocess, StoredPicture
from captioner.loading import loaded_batches
from captioner.model_folder import replaced_folder
from captioner.records import CaptionedImage

CACHE_VERSION = 2
"""Part of the key: it grows when grids are computed or stored in another way."""

_logger = logging.getLogger(__name__)


class CacheError(CaptionerError):
    """Grids that cannot be computed or stored; the message says what to do."""


def read_ahead(grids: np.ndarray) -> None:
    """Bring a cache into memory, in the background, where there is room for it.

    Training reads grids in random order, which on a cold file is many times slower than reading it once
    from end to end.
    """
    if not isinstance(grids, np.memmap) or grids.filename is None:
        return
    path = Path(grids.filename)
    if path.stat().st_size > 0.8 * psutil.virtual_memory().available:
        _logger.info("%s is larger than the free memory; random reads may slow training", path)
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
) -> list[Split]:
    """Each group of records with the grids of as many of its pictures as the cache may hold, in turn.

    The size of the cache is told before any of it is computed. Raises: as `cached_grids`.
    """
    a_grid = grid.num_cells * encoder.annotation_dim * np.dtype(np.float16).itemsize
    num_pictures = sum(map(len, groups))
    room = num_pictures if limit_gb is None else min(num_pictures, int(limit_gb * 1e9 / a_grid))
    _logger.info(
        "cache: %s of %s grids of %d x %d x %s in half precision take %.2f GB in %s; "
        "--cache-limit-gb limits it, 0 keeps none",
        f"{room:,}",
        f"{num_pictures:,}",
        grid.rows,
        grid.cols,
        f"{encoder.annotation_dim:,}",
        room * a_grid / 1e9,
        cache_dir,
    )
    splits = []
    for records in groups:
        cached = records[:room]
        room -= len(cached)
        grids = (
            cached_grids(
                records=cached, encoder=encoder, preprocess=preprocess, grid=grid, cache_dir=cache_dir
            )
            if cached
            else np.zeros((0, grid.num_cells, encoder.annotation_dim), np.float16)
        )
        splits.append(Split(records=records, grids=grids))
    return splits


def cached_grids(
    *,
    records: Sequence[CaptionedImage],
    encoder: Encoder,
    preprocess: PreprocessConfig,
    grid: GridConfig,
    cache_dir: Path,
    batch_size: int = 32,
) -> Float16[np.ndarray, "images cells annotation"]:
    """The grids of the records' pictures, in their order, computed where the cache lacks them.

    Raises:
        CacheError: the disk has no room, or the encoder gives values that half precision cannot hold.
        ImageError: a picture cannot be read.
    """
    key = _key(records, encoder, preprocess)
    digest = hashlib.sha256(msgspec.json.encode(key, order="sorted")).hexdigest()[:16]
    folder = cache_dir / f"{key['backbone']}-{preprocess.size_px}px-{digest}"
    shape = (len(records), grid.num_cells, encoder.annotation_dim)
    if not folder.is_dir():
        size = int(np.prod(shape)) * np.dtype(np.float16).itemsize
        _require_room(cache_dir, size)
        _logger.info("computing %d grids into %s (%.2f GB on disk)", len(records), folder, size / 1e9)
        with replaced_folder(folder) as aside:
            grids = np.lib.format.open_memmap(aside / "grids.npy", mode="w+", dtype=np.float16, shape=shape)
            _compute(grids, records, encoder, Preprocess(preprocess), batch_size)
            grids.flush()
            (aside / "key.json").write_bytes(msgspec.json.format(msgspec.json.encode(key), indent=1))
    return np.load(folder / "grids.npy", mmap_mode="r")


def weights_digest(encoder: Encoder) -> str:
    """What changes when a weight of the CNN does."""
    weights = hashlib.sha256()
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
    """What changes when the picture does: size and time of a file, checksum of a zip's member."""
    if isinstance(source, Path):
        try:
            status = source.stat()
        except OSError:
            return "missing"  # computing the grid will name the file
        return f"{status.st_size}-{status.st_mtime_ns}"
    return f"{source.checksum:08x}"


def _require_room(cache_dir: Path, size: int) -> None:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"cannot make {cache_dir}: {error.strerror}; choose another with --cache-dir"
        ) from None
    free = shutil.disk_usage(cache_dir).free
    if free < size:
        raise CacheError(
            f"the grids take {size / 1e9:.2f} GB but {cache_dir} has {free / 1e9:.2f} GB free; "
            f"make room{_leftovers(cache_dir)} or choose another disk with --cache-dir"
        )


def _leftovers(cache_dir: Path) -> str:
    """Caches that were cut off while they were computed, by a kill for example."""
    found = sorted(cache_dir.glob(".*-*px-*"))
    return f" ({', '.join(map(str, found))} may be removed if no run is computing it)" if found else ""


def _compute(
    grids: np.ndarray,
    records: Sequence[CaptionedImage],
    encoder: Encoder,
    preprocess: Preprocess,
    batch_size: int,
) -> None:
    device = next(encoder.parameters()).device
    done = 0
    sources = (record.source for record in records)
    with tqdm(total=len(records), desc="grids", unit=" pictures", delay=2) as progress:
        for batch in loaded_batches(sources, preprocess.load, batch_size=batch_size):
            pictures = []
            for _, picture in batch:
                if isinstance(picture, ImageError):
                    raise picture
                pictures.append(picture)
            images = torch.from_numpy(np.stack(pictures))
            with torch.inference_mode():
                half = encoder.annotate(images.to(device)).cpu().numpy().astype(np.float16)
            if not np.isfinite(half).all():
                raise CacheError(
                    "the encoder gives values that half precision cannot hold; are its weights sound?"
                )
            grids[done : done + len(batch)] = half
            done += len(batch)
            progress.update(len(batch))
