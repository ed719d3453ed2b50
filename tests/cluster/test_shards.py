"""Shards of a large job: every picture is in one of them, wherever it is stored, and has one row."""

import io
import json
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captioner.cluster.inputs import InputShard, find_shards
from captioner.cluster.shards import ShardFolder
from captioner.errors import CaptionerError, ImageError
from captioner.images.sources import PictureBytes
from tests.conftest import ROOT, noise_picture


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    noise_picture(number).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def shards_of(*inputs: Path | str, column: str | None = None, done: Iterable[str] = ()) -> list[InputShard]:
    given = [str(one) for one in inputs]
    return list(find_shards(given, is_recursive=True, column=column, files_per_shard=3, done=done))


def names_and_contents(shards: Iterable[InputShard]) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for shard in shards:
        for picture in shard.pictures():
            if isinstance(picture, ImageError):
                found[picture.file] = f"error: {picture.reason}"
            else:
                with picture.open("rb") as file:
                    found[str(picture)] = file.read()
    return found


def test_folder_is_split_into_shards_of_what_is_not_done(tmp_path: Path) -> None:
    pictures = [tmp_path / "a" / f"{number}.png" for number in range(8)]
    pictures[0].parent.mkdir()
    for number, path in enumerate(pictures):
        path.write_bytes(png(number))
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / ".hidden.png").write_bytes(png(0))
    shards = shards_of(tmp_path)
    assert [len(shard.files) for shard in shards] == [3, 3, 2]
    assert names_and_contents(shards) == {str(path): path.read_bytes() for path in pictures}
    left = shards_of(tmp_path, done=map(str, pictures[:6]))
    assert [shard.files for shard in left] == [tuple(map(str, pictures[6:]))]
    assert shards_of(f"file://{tmp_path}")[0].files[0] == f"file://{pictures[0]}"
    assert names_and_contents(shards_of(f"file://{tmp_path}"))[f"file://{pictures[7]}"] == png(7)


def damaged(content: bytes, position: int) -> bytes:
    return content[:position] + b"\xff" * 20 + content[position + 20 :]


def test_unusual_names_and_pictures_given_twice_are_in_one_shard(tmp_path: Path) -> None:
    names = ["a b.png", "c#d.png", "e%20f.png", "g?h.png"]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(png(number))
    (tmp_path / "a.attention.png").write_bytes(png(9))
    for folder in (str(tmp_path), f"file://{tmp_path}", f"file://{tmp_path}/"):
        found = names_and_contents(shards_of(folder))
        assert sorted(map(bytes, found.values())) == sorted(png(number) for number in range(4))  # type: ignore[arg-type]
    shards = shards_of(tmp_path, tmp_path / names[0], f"{tmp_path}/")
    assert sorted(file for shard in shards for file in shard.files) == sorted(
        str(tmp_path / name) for name in names
    )
    paths = tmp_path / "0.parquet"
    pq.write_table(pa.table({"path": ["https://nowhere.example/a.png", "nonsense://a b/c", ""]}), paths)
    errors = names_and_contents(shards_of(paths))
    assert len(errors) == 3
    assert all(str(error).startswith("error: ") for error in errors.values())


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tar_archive_is_a_shard_of_its_pictures(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"0{suffix}"
    members = [(f"{number:03}.{kind}", png(number)) for number in range(3) for kind in ("png", "json")]
    write_tar(path, members, "w:gz" if suffix.endswith("gz") else "w")
    (shard,) = shards_of(tmp_path)
    assert names_and_contents([shard]) == {f"{path}/{number:03}.png": png(number) for number in range(3)}


def test_truncated_tar_archive_gives_its_complete_pictures_and_an_error(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    write_tar(path, [(f"{number}.png", png(number)) for number in range(3)])
    second_ends = 2 * 512 + 2 * ((len(png(0)) + 511) // 512 * 512)
    path.write_bytes(path.read_bytes()[: second_ends + 512 + 100])
    found = names_and_contents(shards_of(tmp_path))
    assert found[f"{path}/1.png"] == png(1)
    assert str(found[str(path)]).startswith("error: cannot read the rest (")
    assert len(found) == 3
    write_tar(path, [(f"{number}.png", png(number)) for number in range(3)])
    for content in (path.read_bytes()[: second_ends + 100], damaged(path.read_bytes(), second_ends)):
        path.write_bytes(content)  # truncated within a header, and a damaged header
        found = names_and_contents(shards_of(tmp_path))
        assert found[f"{path}/1.png"] == png(1)
        assert len(found) == 3
        assert str(found[str(path)]).startswith("error: cannot read the rest (")
    path.write_bytes(b"no archive")
    assert list(names_and_contents(shards_of(tmp_path))) == [str(path)]


def test_parquet_has_pictures_or_paths_in_a_column(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    values = [
        {"bytes": png(0), "path": None},
        {"bytes": None, "path": "1.png"},
        {"bytes": None, "path": str(tmp_path / "1.png")},
        None,
        {"bytes": None, "path": None},
    ]
    path = tmp_path / "data" / "0.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"label": range(5), "image": values}), path, row_group_size=2)
    shards = shards_of(path.parent)
    assert [(shard.row_group, shard.column) for shard in shards] == [(0, "image"), (1, "image"), (2, "image")]
    pictures = [picture for shard in shards for picture in shard.pictures()]
    assert pictures[0] == PictureBytes(f"{path}#0", png(0))
    assert pictures[1:3] == [path.parent / "1.png", tmp_path / "1.png"]
    assert [str(error) for error in pictures[3:]] == [
        f"{path}#3: the row has no picture",
        f"{path}#4: the row has no picture",
    ]

    pq.write_table(pa.table({"jpg": [png(2)], "where": [str(tmp_path / "1.png")]}), path)
    assert names_and_contents(shards_of(path)) == {f"{path}#0": png(2)}
    assert names_and_contents(shards_of(path, column="where")) == {str(tmp_path / "1.png"): png(1)}
    with pytest.raises(
        CaptionerError, match=r"has the columns jpg, where; name the one with pictures with --column"
    ):
        shards_of(path, column="picture")


def test_missing_or_empty_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="no such file or folder"):
        shards_of(tmp_path / "nowhere")
    with pytest.raises(CaptionerError, match="no pictures, tar archives or Parquet files in this folder"):
        shards_of(tmp_path)
    with pytest.raises(CaptionerError, match="cannot open nonsense://a/b: "):
        shards_of("nonsense://a/b")
    (tmp_path / "0.parquet").write_text("damaged")
    with pytest.raises(CaptionerError, match="is not a valid Parquet file"):
        shards_of(tmp_path)


@pytest.mark.parametrize("shard_format", ["parquet", "jsonl"])
def test_shards_contain_the_rows_and_record_what_is_done(tmp_path: Path, shard_format: str) -> None:
    folder = ShardFolder(str(tmp_path / "out"), shard_format)  # type: ignore[arg-type]
    folder.create()
    folder.check_settings({"beam": 3})
    shards = [InputShard(files=("a.png", "b.png")), InputShard(location="0.tar")]
    rows = [
        {"file": "a.png", "caption": "a dog", "tokens": ["a", "dog"], "log_prob": -1.5},
        {"file": "b.png", "error": "no such file"},
    ]
    for _ in range(2):  # a shard that is done twice has its rows once
        folder.write(shards[0], rows)
    assert folder.done_shards() == {shards[0].name}
    assert list(folder.done_files()) == ["a.png", "b.png"]
    (file,) = (path for path in (tmp_path / "out").iterdir() if not path.name.startswith("."))
    if shard_format == "parquet":
        read = [{k: v for k, v in row.items() if v is not None} for row in pq.read_table(file).to_pylist()]
    else:
        read = [json.loads(line) for line in file.read_text().splitlines()]
    assert read == rows
    folder.write(shards[1], [{"file": "caf\udce9.png", "error": "odd"}])
    assert "caf\\xe9.png" in list(folder.done_files())
    (tmp_path / "out" / f"{shards[1].name}.{shard_format}").write_text("[]")
    with pytest.raises(CaptionerError, match="was not written by captioner"):
        list(folder.done_files())
    folder.check_settings({"beam": 3})
    with pytest.raises(CaptionerError, match="has captions made with another beam; choose another --output"):
        folder.check_settings({"beam": 5})
    other = ShardFolder(str(tmp_path / "out"), "jsonl" if shard_format == "parquet" else "parquet")
    with pytest.raises(CaptionerError, match=r"is not .*; choose another --output"):
        other.create()


def test_second_job_in_an_output_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first, second = (ShardFolder(str(tmp_path / "out"), "jsonl") for _ in range(2))
    first.create()
    refused = pytest.raises(
        CaptionerError, match=r"another job is using .*; wait for it, or choose another --output"
    )
    with first.lock(), refused, second.lock():
        pass
    with second.lock():
        pass


def test_lock_of_a_killed_job_does_not_stop_the_next(tmp_path: Path) -> None:
    folder = ShardFolder(str(tmp_path / "out"), "jsonl")
    folder.create()
    code = (
        "import os, signal\n"
        "from captioner.cluster.shards import ShardFolder\n"
        f"with ShardFolder({str(tmp_path / 'out')!r}, 'jsonl').lock():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert result.returncode == -signal.SIGKILL
    with folder.lock():
        pass


def test_damaged_settings_are_reported(tmp_path: Path) -> None:
    folder = ShardFolder(str(tmp_path / "out"), "jsonl")
    folder.create()
    (tmp_path / "out" / ".settings.json").write_text("[]")
    with pytest.raises(CaptionerError, match="is damaged; choose another --output"):
        folder.check_settings({"beam": 3})


@pytest.mark.parametrize("name", ["clip.gif", "clip.GIF"])
def test_own_figures_and_animations_in_a_folder_are_not_inputs(tmp_path: Path, name: str) -> None:
    comment = b"GIF89a" + bytes(20) + b"\x21\xfe\x09captioner\x00"
    (tmp_path / name).write_bytes(comment)
    (tmp_path / "theirs.gif").write_bytes(b"GIF89a" + bytes(40))
    (tmp_path / "a.attention.png").write_bytes(b"")
    (shard,) = shards_of(tmp_path)
    assert [Path(file).name for file in shard.files] == ["theirs.gif"]


def test_archives_are_recognised_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.TAR", [("a.png", png(0))])
    (shard,) = shards_of(tmp_path)
    assert shard.location == str(tmp_path / "0.TAR")
    assert len(list(shard.pictures())) == 1
