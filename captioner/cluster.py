"""Captions by many machines: Ray Data deals the parts of a job to actors, each with a model of its own."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import ray.data

from captioner.captions import Caption
from captioner.cli_model import ModelOptions
from captioner.config import DecodingConfig
from captioner.errors import CaptionerError
from captioner.images import ImageError
from captioner.inference import Wanted
from captioner.output import caption_as_json
from captioner.parts import Part
from captioner.shards import ShardFolder, ShardFormat

_MOST_RETRIES = 8  # of a part: a picture may crash what decodes it


class ClusterError(CaptionerError):
    """A job that the cluster could not run."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every actor has to know."""

    model: ModelOptions
    decoding: DecodingConfig
    wanted: Wanted
    batch_size: int
    output: str
    format: ShardFormat


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What of the cluster is taken; without numbers, all of it.

    An actor is a process with a model: one for each GPU where there are any, else one for each core.
    """

    num_actors: int | None = None
    cpus_an_actor: float | None = None
    gpus_an_actor: float | None = None

    def resolve(self) -> "Cluster":
        """With numbers in the place of what was left out, from what the connected cluster has."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self.gpus_an_actor
        if gpus is None:
            gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes))
        cpus = self.cpus_an_actor
        if cpus is None:  # a GPU is fed by its share of its node's cores, which decode pictures
            shares = [node.get("CPU", 0) // node["GPU"] * gpus for node in nodes if node.get("GPU")]
            cpus = max(1.0, min(shares) - 1) if gpus and shares else 1.0
        fitting = sum(
            int(min(node.get("CPU", 0) / cpus, node.get("GPU", 0) / gpus if gpus else math.inf))
            for node in nodes
        )
        if not fitting:
            raise ClusterError(f"no node of the cluster has {cpus:g} CPUs and {gpus:g} GPUs for an actor")
        return Cluster(num_actors=self.num_actors or fitting, cpus_an_actor=cpus, gpus_an_actor=gpus)


@dataclass(frozen=True)
class PartDone:
    """How many pictures a part had, and how many of them could not be read."""

    num_pictures: int
    num_errors: int


def caption_parts(parts: Sequence[Part], job: Job, cluster: Cluster) -> Iterator[PartDone]:
    """Caption the parts on the connected cluster and write their shards; gives one item as each is done.

    An actor that dies is replaced, and the part that it was at is done anew.

    Raises: ClusterError, where an actor fits nowhere.
    """
    cluster = cluster.resolve()
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    given = ray.data.from_items([{"part": asdict(part)} for part in parts], override_num_blocks=len(parts))
    done = given.map_batches(
        _Actor,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(cluster.num_actors or 1, len(parts))),
        num_cpus=cluster.cpus_an_actor,
        num_gpus=cluster.gpus_an_actor or None,
        max_task_retries=_MOST_RETRIES,
        fn_constructor_args=(job, max(1, int(cluster.cpus_an_actor or 1))),
    )
    for row in done.iter_rows():
        yield PartDone(num_pictures=int(row["num_pictures"]), num_errors=int(row["num_errors"]))


class _Actor:
    """Captions a part and writes its shard."""

    def __init__(self, job: Job, threads: int) -> None:
        self.job = job
        self.captioner = job.model.load(threads=threads)
        self.folder = ShardFolder(job.output, job.format)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        (given,) = batch["part"]
        part = Part(**{**given, "files": tuple(given["files"])})
        rows = list(self._rows(part))
        self.folder.write(part, rows)
        num_errors = sum("error" in row for row in rows)
        return {"num_pictures": np.array([len(rows)]), "num_errors": np.array([num_errors])}

    def _rows(self, part: Part) -> Iterator[dict[str, Any]]:
        """Pictures that cannot be come by have their rows last."""
        failed: list[ImageError] = []

        def sources() -> Iterator[Any]:
            for picture in part.pictures():
                if isinstance(picture, ImageError):
                    failed.append(picture)
                else:
                    yield picture

        job = self.job
        results = self.captioner.caption_files(
            sources(), batch_size=job.batch_size, decoding=job.decoding, wanted=job.wanted
        )
        for batch in results:
            yield from map(_row, batch)
        yield from map(_row, failed)


def _row(result: Caption | ImageError) -> dict[str, Any]:
    if isinstance(result, ImageError):
        return {"file": result.file, "error": result.reason}
    row = caption_as_json(result, with_attention=False)
    return {name: value for name, value in row.items() if name != "grid"}
