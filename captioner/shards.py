"""Where the captions of a large job go: a file for each part, which is whole or not there.

A part that was begun and not ended is done anew, by whoever, under the same name: each picture has one row.
"""

import io
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from captioner.parts import InputError, Part, as_stored, in_a_line, place

ShardFormat = Literal["parquet", "jsonl"]

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
"""The columns of a shard. A picture that cannot be read has an `error`, and nothing but its name besides."""


class ShardFolder:
    """The output: a file for each part that is done."""

    def __init__(self, location: str, shard_format: ShardFormat) -> None:
        self.format = shard_format
        self.system, self.path = place(location)

    def create(self) -> None:
        """Raises: InputError, where it holds shards of another format or cannot be made."""
        try:
            self.system.create_dir(self.path, recursive=True)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self.path} cannot be made: {in_a_line(error)}") from error
        others = [name for name in self._names() if not name.endswith(f".{self.format}")]
        if others:
            raise InputError(f"{self.path} holds {others[0]}, which is no {self.format}; name another folder")

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Note what its captions are made with. Raises: InputError, where those there are made otherwise."""
        path, content = f"{self.path}/.settings.json", json.dumps(settings, indent=1, sort_keys=True)
        try:
            if self.system.get_file_info(path).type == fs.FileType.NotFound:
                with self._replaced(path) as stream:
                    stream.write(content.encode())
                return
            with self.system.open_input_stream(path) as stream:
                before = json.loads(stream.read())
        except (OSError, pa.ArrowException, ValueError) as error:
            raise InputError(f"{path} cannot be written or read: {in_a_line(error)}") from error
        changed = [name for name, value in json.loads(content).items() if before.get(name) != value]
        if changed:
            raise InputError(
                f"{self.path} holds captions made with another {', '.join(changed)}; name another folder"
            )

    def done_parts(self) -> set[str]:
        """The names of the parts that are done."""
        return {name.removesuffix(f".{self.format}") for name in self._names()}

    def done_files(self) -> Iterator[str]:
        """What the rows that are there call their pictures. Raises: InputError, where a file is not ours."""
        for name in self._names():
            try:
                with self.system.open_input_file(f"{self.path}/{name}") as file:
                    if self.format == "parquet":
                        names = pq.read_table(file, columns=["file"])["file"].to_pylist()
                    else:
                        names = [json.loads(line)["file"] for line in io.BytesIO(file.read())]
            except (OSError, pa.ArrowException, ValueError, LookupError, TypeError) as error:
                raise InputError(f"{self.path}/{name} is no shard of ours: {in_a_line(error)}") from error
            yield from names

    def write(self, part: Part, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write a part's shard, whole or not at all."""
        named = [{**row, "file": as_stored(row["file"])} for row in rows]
        with self._replaced(f"{self.path}/{part.name}.{self.format}") as stream:
            if self.format == "parquet":
                pq.write_table(pa.Table.from_pylist(named, schema=ROW_SCHEMA), stream)
            else:
                for row in named:
                    stream.write(json.dumps(row).encode() + b"\n")

    @contextmanager
    def _replaced(self, path: str) -> Iterator[pa.NativeFile]:
        """A file that takes its name once it is whole."""
        aside = f"{self.path}/.{uuid.uuid4().hex}"
        with self.system.open_output_stream(aside) as stream:
            yield stream
        self.system.move(aside, path)

    def _names(self) -> list[str]:
        found = self.system.get_file_info(fs.FileSelector(self.path))
        return sorted(file.base_name for file in found if not file.base_name.startswith("."))
