"""The command `captioner batch`."""

import logging
import sys
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import tyro

from captioner.checkpoint.folder import read_config
from captioner.cli.caption import DecodingFlags, SearchFlags
from captioner.cli.options import (
    ModelFlags,
    arg,
    changed,
    check_batch_size,
    check_flags,
    check_words,
    checked,
    flags,
    given,
    model_options,
)
from captioner.cluster.options import Cluster, Inputs, ShardFormat
from captioner.config import DecodingOptions
from captioner.errors import UsageError
from captioner.formats import escape_controls

InputFlags: Any = flags(Inputs)
ClusterFlags: Any = flags(Cluster)


@dataclass(frozen=True, kw_only=True)
class BatchCommand:
    """Caption a large number of pictures on a cluster, with Ray.

    INPUT is files, folders, tar archives or Parquet files, or URIs such as s3://bucket/folder. Captions are
    written to a folder of shards; if the job is interrupted, the same command does what is missing.

    Exit status: 0; 1 if a picture could not be read (its row has an error) or the command failed; 2 for
    wrong usage.
    """

    ADVANCED: ClassVar[tuple[str, ...]] = ("search",)

    inputs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...", help_behavior_hint="")
    ]
    """Pictures, folders, tar archives, Parquet files, or URIs of these."""
    output: Annotated[str, arg("DIR")]
    """Folder or URI for the shards of captions."""
    format: Annotated[ShardFormat, arg("parquet|jsonl", "parquet")] = "parquet"
    """Format of the shards."""
    reading: InputFlags = field(default_factory=InputFlags)
    cluster: ClusterFlags = field(default_factory=ClusterFlags)
    batch_size: Annotated[int, arg("INT", "8")] = 8
    """Pictures per batch."""
    decoding: DecodingFlags = field(default_factory=DecodingFlags)
    machine: ModelFlags = field(default_factory=ModelFlags)
    search: SearchFlags = field(default_factory=SearchFlags)

    def run(self) -> int:
        """Run the job and return the exit status."""
        if not self.inputs:
            raise UsageError("give pictures, folders, tar archives or Parquet files; see --help")
        check_batch_size(self.batch_size)
        changes = given(self.decoding) | given(self.search)
        check_flags(DecodingOptions, changes)
        check_words("--must-include", changes.get("must_include", ()))
        machine = model_options(self.machine)
        inputs: Inputs = checked(Inputs, vars(self.reading))
        cluster: Cluster = checked(Cluster, vars(self.cluster))

        logging.getLogger("ray.data").setLevel(logging.WARNING)  # the progress bar says enough
        from captioner.cluster.inputs import absolute
        from captioner.cluster.ray_job import Job, run_job

        assert machine.model is not None
        folder = machine.model.absolute()
        job = Job(
            model=replace(machine, model=folder),
            options=changed(read_config(folder).decoding, changes),
            batch_size=self.batch_size,
            output=absolute(self.output),
            format=self.format,
        )
        num_errors = run_job(self.inputs, job, cluster, inputs, report=_report)
        return 1 if num_errors else 0


def _report(text: str) -> None:
    sys.stderr.write(f"captioner: {escape_controls(text)}\n")
