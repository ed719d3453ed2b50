"""Output of a cluster job: one file per input shard.

A file is complete or absent. An input shard that was interrupted is captioned again, by any actor, under the
same name, so that each picture has one row.
"""

import io
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from captioner.atomic import folder_lock
from captioner.cluster.inputs import InputShard, as_stored, resolve_filesystem
from captioner.cluster.options import ShardFormat
from captioner.errors import CaptionerError, one_line

ROW_SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "caption": pa.string(),
        "tokens": pa.list_(pa.string()),
        "log_prob": pa.float64(),
        "alternatives": pa.list_(
            pa.struct({"caption": pa.string(), "tokens": pa.list_(pa.string()), "log_prob": pa.float64()})
        ),
        "error": pa.string(),
    }
)
"""The columns of a shard. A picture that cannot be read has only its name and an `error`."""


class ShardFolder:
    """The output folder: a file for each input shard that is done."""

    def __init__(self, location: str, shard_format: ShardFormat) -> None:
        self.format = shard_format
        self.system, self.path = resolve_filesystem(location)

    def create(self) -> None:
        """Raises: CaptionerError, if it contains shards of another format or cannot be created."""
        try:
            self.system.create_dir(self.path, recursive=True)
        except (OSError, pa.ArrowException) as error:
            raise CaptionerError(f"cannot create {self.path}: {one_line(error)}") from error
        others = [name for name in self._names() if not name.endswith(f".{self.format}")]
        if others:
            raise CaptionerError(
                f"{self.path} contains {others[0]}, which is not {self.format}; choose another --output"
            )

    def lock(self) -> AbstractContextManager[None]:
        """Keep other jobs out: two at once would caption the same pictures into different shards.

        Only local and shared file systems have locks; on an object store it is up to the user.

        Raises:
            CaptionerError: another job is using the folder, or it cannot be written to.
        """
        if not isinstance(self.system, fs.LocalFileSystem):
            return nullcontext()
        return folder_lock(Path(self.path), used_by="another job", option="--output")

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Record how its captions are generated. Raises: CaptionerError, if existing ones differ in this."""
        path, content = f"{self.path}/.settings.json", json.dumps(settings, indent=1, sort_keys=True)
        try:
            if self.system.get_file_info(path).type == fs.FileType.NotFound:
                with self._replaced(path) as stream:
                    stream.write(content.encode())
                return
            with self.system.open_input_stream(path) as stream:
                before = json.loads(stream.read())
        except (OSError, pa.ArrowException, ValueError) as error:
            raise CaptionerError(f"cannot read or write {path}: {one_line(error)}") from error
        if not isinstance(before, dict):
            raise CaptionerError(f"{path} is damaged; choose another --output")
        changed = [name for name, value in json.loads(content).items() if before.get(name) != value]
        if changed:
            raise CaptionerError(
                f"{self.path} has captions made with another {', '.join(changed)}; choose another --output"
            )

    def done_shards(self) -> set[str]:
        """The names of the shards that are done."""
        return {name.removesuffix(f".{self.format}") for name in self._names()}

    def done_files(self) -> Iterator[str]:
        """The names of the pictures in all rows. Raises: CaptionerError, if a file is not a shard."""
        for name in self._names():
            try:
                with self.system.open_input_file(f"{self.path}/{name}") as file:
                    if self.format == "parquet":
                        names = pq.read_table(file, columns=["file"])["file"].to_pylist()
                    else:
                        names = [json.loads(line)["file"] for line in io.BytesIO(file.read())]
            except (OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
                raise CaptionerError(
                    f"{self.path}/{name} was not written by captioner ({one_line(error)}); "
                    "choose another --output"
                ) from error
            yield from names

    def write(self, shard: InputShard, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the captions of an input shard, completely or not at all."""
        named = [{**row, "file": as_stored(row["file"])} for row in rows]
        with self._replaced(f"{self.path}/{shard.name}.{self.format}") as stream:
            if self.format == "parquet":
                pq.write_table(pa.Table.from_pylist(named, schema=ROW_SCHEMA), stream)
            else:
                for row in named:
                    stream.write(json.dumps(row).encode() + b"\n")

    @contextmanager
    def _replaced(self, path: str) -> Iterator[pa.NativeFile]:
        """A file that gets its name once it is complete."""
        aside = f"{self.path}/.{uuid.uuid4().hex}"
        with self.system.open_output_stream(aside) as stream:
            yield stream
        self.system.move(aside, path)

    def _names(self) -> list[str]:
        found = self.system.get_file_info(fs.FileSelector(self.path))
        return sorted(file.base_name for file in found if not file.base_name.startswith("."))
