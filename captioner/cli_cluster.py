"""The flags of `captioner caption --engine ray`, and what runs them."""

import hashlib
import os
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from tqdm import tqdm

from captioner.errors import UsageError
from captioner.flags import hint
from captioner.model_folder import GRAPHS, SHIPPED_MODEL, VOCABULARY, WEIGHTS

if TYPE_CHECKING:
    from captioner.cluster import Job


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """With --engine ray: which part of a cluster works, and on what. INPUT may then also be tar archives or
    Parquet files, or folders of these, and URIs such as s3://bucket/folder.
    """

    ray_address: Annotated[
        str | None, hint("ADDRESS", "RAY_ADDRESS, or what runs on this machine, else a new one")
    ] = None
    """Cluster to connect to."""
    num_actors: Annotated[int | None, hint("INT", "one for each GPU, else for each core")] = None
    """Processes that caption, each with a model."""
    cpus_per_actor: Annotated[float | None, hint("FLOAT", "1, or a GPU's share of the cores")] = None
    gpus_per_actor: Annotated[float | None, hint("FLOAT", "1 where there are any")] = None
    column: Annotated[str | None, hint("NAME", "image, path or the like")] = None
    """Column of Parquet files that holds pictures or their paths."""
    files_per_shard: int = 1000
    """Of folders of pictures, so many make a part, whose captions are one file of the output."""

    def check(self) -> None:
        """Raises: UsageError."""
        for name in ("num_actors", "cpus_per_actor", "files_per_shard"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"--{name.replace('_', '-')} must be above 0, not {value}")
        if self.gpus_per_actor is not None and self.gpus_per_actor < 0:
            raise UsageError(f"--gpus-per-actor must not be negative, but is {self.gpus_per_actor}")


def run_on_cluster(
    inputs: tuple[str, ...], options: ClusterOptions, job: "Job", *, is_recursive: bool
) -> int:
    """Caption what is not done yet; gives how many pictures could not be read.

    Raises:
        UsageError: the cluster's address is none.
        captioner.parts.InputError: an input or the output cannot be used.
        captioner.cluster.ClusterError: the cluster failed.
    """
    import ray

    from captioner.cluster import Cluster, ClusterError, caption_parts
    from captioner.parts import find_parts
    from captioner.shards import ShardFolder

    folder = ShardFolder(job.output, job.format)
    folder.create()
    folder.claim(_settings(job))
    parts = find_parts(
        inputs,
        is_recursive=is_recursive,
        column=options.column,
        files_a_part=options.files_per_shard,
        done=folder.done_files(),
    )
    by_name = {part.name: part for part in parts}  # an archive may be named twice
    done = folder.done_parts()
    left = [part for name, part in by_name.items() if name not in done]
    if not left:
        sys.stderr.write(f"captioner: all is done already; see {job.output}\n")
        return 0
    cluster = Cluster(
        num_actors=options.num_actors,
        cpus_an_actor=options.cpus_per_actor,
        gpus_an_actor=options.gpus_per_actor,
    )
    num_pictures = num_errors = 0
    try:
        if not ray.is_initialized():
            try:
                _connect(options.ray_address)
            except ValueError as error:
                raise UsageError(f"--ray-address {options.ray_address}: {error}") from error
        with tqdm(total=len(left), desc="captioning", unit=" parts") as progress:
            for part in caption_parts(left, job, cluster):
                num_pictures, num_errors = num_pictures + part.num_pictures, num_errors + part.num_errors
                progress.update()
                progress.set_postfix(pictures=num_pictures, errors=num_errors)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
        told = " ".join(str(error).strip().splitlines()[-1].split())
        raise ClusterError(f"the cluster failed: {told}; what is done is kept, so run this again") from error
    sys.stderr.write(
        f"captioner: {num_pictures:,} rows in {len(left):,} new files of {job.output}, "
        f"{num_errors:,} of them with an error in place of a caption\n"
    )
    return num_errors


def _connect(address: str | None) -> None:
    import logging

    import ray

    ray.init(
        address=address or os.environ.get("RAY_ADDRESS"),
        logging_level=logging.WARNING,
        log_to_driver=False,
        include_dashboard=False if address is None and "RAY_ADDRESS" not in os.environ else None,
    )


def _settings(job: "Job") -> dict[str, Any]:
    """What decides the captions: the model's files, and what is searched."""
    model = job.model.model or SHIPPED_MODEL
    digest = hashlib.sha256()
    for name in (WEIGHTS, VOCABULARY, *GRAPHS.values()):
        if (model / name).is_file():
            digest.update((model / name).read_bytes())
    return {
        "model": digest.hexdigest(),
        "decoding": asdict(job.decoding),
        "wanted": asdict(job.wanted),
    }
