"""Cluster job: Ray assigns input shards to actors with models."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import ray
import ray.data
from tqdm import tqdm

from captioner.caption import Caption
from captioner.checkpoint.folder import model_digest
from captioner.cluster.inputs import InputShard, find_shards
from captioner.cluster.options import Cluster, Inputs, ShardFormat
from captioner.cluster.shards import ShardFolder
from captioner.config import DecodingOptions, ModelOptions
from captioner.errors import CaptionerError, ImageError, UsageError
from captioner.inference import Captioner

_MAX_RETRIES = 8  # of a shard: a picture may crash its decoder


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings that every actor needs. The model's folder is absolute."""

    model: ModelOptions
    options: DecodingOptions
    batch_size: int
    output: str
    format: ShardFormat


def connect(cluster: Cluster) -> None:
    """Raises: UsageError, if the address is invalid."""
    if ray.is_initialized():
        return
    is_local = cluster.ray_address is None and "RAY_ADDRESS" not in os.environ
    try:
        ray.init(
            address=cluster.ray_address or os.environ.get("RAY_ADDRESS"),
            logging_level=logging.WARNING,
            log_to_driver=False,
            include_dashboard=False if is_local else None,
        )
    except ValueError as error:
        given = cluster.ray_address or f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS')}"
        raise UsageError(f"cannot connect to the cluster {given}: {error}") from error


def resolved(cluster: Cluster) -> Cluster:
    """With numbers instead of defaults, from what the connected cluster has.

    Raises: CaptionerError, if no node has room for an actor.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = cluster.gpus_per_actor
    if gpus is None:
        gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes))
    cpus = cluster.cpus_per_actor
    if cpus is None:  # a GPU is fed by its share of its node's cores, which decode pictures
        shares = [node.get("CPU", 0) // node["GPU"] * gpus for node in nodes if node.get("GPU")]
        cpus = max(1.0, min(shares) - 1) if gpus and shares else 1.0
    fitting = sum(
        int(min(node.get("CPU", 0) / cpus, node.get("GPU", 0) / gpus if gpus else math.inf)) for node in nodes
    )
    if not fitting:
        raise CaptionerError(f"no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for an actor")
    num_actors = cluster.num_actors or fitting
    return replace(cluster, num_actors=num_actors, cpus_per_actor=cpus, gpus_per_actor=gpus)


@dataclass(frozen=True)
class ShardResult:
    """Numbers of pictures of a shard, and of those that could not be read."""

    num_pictures: int
    num_errors: int


def run_job(
    inputs: Sequence[str],
    job: Job,
    cluster: Cluster,
    reading: Inputs,
    *,
    report: Callable[[str], None],
) -> int:
    """Caption what is not done yet; returns how many pictures could not be read.

    Raises:
        CaptionerError: an input or the output cannot be used, or the cluster failed.
    """
    folder = ShardFolder(job.output, job.format)
    folder.create()
    assert job.model.model is not None
    with folder.lock():
        settings = {"model": model_digest(job.model.model), "decoding": asdict(job.options)}
        folder.check_settings(settings)
        found = find_shards(
            inputs,
            is_recursive=reading.recursive,
            column=reading.column,
            files_per_shard=reading.files_per_shard,
            done=folder.done_files(),
        )
        by_name = {shard.name: shard for shard in found}  # an archive may be named twice
        done = folder.done_shards()
        left = [shard for name, shard in by_name.items() if name not in done]
        if not left:
            report(f"nothing to do: all pictures are captioned in {job.output}")
            return 0
        num_pictures = num_errors = 0
        try:
            connect(cluster)
            with tqdm(total=len(left), desc="captioning", unit=" shards", disable=None) as progress:
                for result in caption_shards(left, job, cluster):
                    num_pictures += result.num_pictures
                    num_errors += result.num_errors
                    progress.update()
                    progress.set_postfix(pictures=num_pictures, errors=num_errors)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
            reason = " ".join(str(error).strip().splitlines()[-1].split())
            raise CaptionerError(
                f"the cluster failed: {reason}; finished shards are kept, so run this again"
            ) from error
    report(
        f"{num_pictures:,} rows in {len(left):,} new files of {job.output}, {num_errors:,} of them with an "
        "error instead of a caption"
    )
    return num_errors


def caption_shards(shards: Sequence[InputShard], job: Job, cluster: Cluster) -> Iterator[ShardResult]:
    """Caption shards on the connected cluster and write their output; yields a result as each is done.

    An actor that dies is replaced, and its shard is captioned again.

    Raises: CaptionerError, if no node has room for an actor.
    """
    cluster = resolved(cluster)
    ray.data.DataContext.get_current().enable_progress_bars = False
    items = ray.data.from_items(
        [{"shard": asdict(shard)} for shard in shards], override_num_blocks=len(shards)
    )
    results = items.map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(cluster.num_actors or 1, len(shards))),
        num_cpus=cluster.cpus_per_actor,
        num_gpus=cluster.gpus_per_actor or None,
        max_task_retries=_MAX_RETRIES,
        fn_constructor_args=(job, max(1, int(cluster.cpus_per_actor or 1))),
    )
    for row in results.iter_rows():
        yield ShardResult(num_pictures=int(row["num_pictures"]), num_errors=int(row["num_errors"]))


class _Actor:
    """Captions a shard and writes its output."""

    def __init__(self, job: Job, threads: int) -> None:
        self.job = job
        self.captioner = Captioner.from_options(replace(job.model, threads=job.model.threads or threads))
        self.folder = ShardFolder(job.output, job.format)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (values,) = batch["shard"]
        shard = InputShard(**{**values, "files": tuple(values["files"])})
        rows = list(self._rows(shard))
        self.folder.write(shard, rows)
        num_errors = sum("error" in row for row in rows)
        return {"num_pictures": np.array([len(rows)]), "num_errors": np.array([num_errors])}

    def _rows(self, shard: InputShard) -> Iterator[dict[str, Any]]:
        """Pictures that cannot be opened have their rows last."""
        failed: list[ImageError] = []

        def sources() -> Iterator[Any]:
            for picture in shard.pictures():
                if isinstance(picture, ImageError):
                    failed.append(picture)
                else:
                    yield picture

        results = self.captioner.caption_files(
            sources(), batch_size=self.job.batch_size, options=self.job.options
        )
        for batch in results:
            yield from map(_row, batch)
        yield from map(_row, failed)


def _row(result: Caption | ImageError) -> dict[str, Any]:
    if isinstance(result, ImageError):
        return {"file": result.file, "error": result.reason}
    row = result.as_json(with_attention=False)
    return {name: value for name, value in row.items() if name != "grid"}
