"""Settings of a cluster job."""

from dataclasses import dataclass
from typing import Literal

from captioner.bounds import Bounded, Count, NonNegative, Positive

ShardFormat = Literal["parquet", "jsonl"]


@dataclass(frozen=True, kw_only=True)
class Cluster(Bounded):
    """Resources of a cluster; by default all of it.

    An actor is a process with a model: one per GPU if there are any, else one per core.
    """

    ray_address: str | None = None
    """Cluster to connect to; by default RAY_ADDRESS, or the one running on this machine, else a new one."""
    num_actors: Count | None = None
    """Captioning processes, each with a model; by default one per GPU, or per core without GPUs."""
    cpus_per_actor: Positive | None = None
    """CPUs per actor; by default 1, or a GPU's share of its machine's cores."""
    gpus_per_actor: NonNegative | None = None
    """GPUs per actor; by default 1 if there are any."""


@dataclass(frozen=True, kw_only=True)
class Inputs(Bounded):
    """Reading of inputs, and their division into shards."""

    recursive: bool = False
    """Search subfolders too."""
    column: str | None = None
    """Column of Parquet files with pictures or their paths; by default image, path or the like."""
    files_per_shard: Count = 1000
    """Pictures per output file, for inputs that are folders of pictures."""
