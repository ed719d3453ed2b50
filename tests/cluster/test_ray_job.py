"""Captioning on a cluster of two nodes: every picture has one row, whichever process is killed."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from captioner.inference import Captioner
from tests.backends.exports import export_once
from tests.cluster.test_shards import png, write_tar
from tests.conftest import ROOT, noise_picture

pytestmark = pytest.mark.long

MAIN = "from captioner.cli.main import main; main()"


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = nodes.add_node(num_cpus=1)
print(nodes.address, flush=True)
if sys.stdin.readline():
    nodes.remove_node(node, allow_graceful=False)
    print("removed", flush=True)
sys.stdin.read()
nodes.shutdown()
"""


class TwoNodes:
    """A cluster in its own process, because Ray changes the handling of signals in a process that has one."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._answer()

    def remove_node(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("remove\n")
        self.process.stdin.flush()
        assert self._answer() == "removed"

    def close(self) -> None:
        self.process.communicate(timeout=60)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    nodes = TwoNodes()
    yield nodes
    nodes.close()


def start(cluster: TwoNodes, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", MAIN, "batch", *map(str, arguments)]
    command += ["--ray-address", cluster.address]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for shard in sorted(out.glob("*.jsonl")) for line in shard.read_text().splitlines()
    ]


def shards(out: Path) -> int:
    return len(list(out.glob("*.jsonl")))


def kill_an_actor() -> None:
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if any("_MapWorker" in part or "MapWorker(" in part for part in process.cmdline()):
                process.kill()
                return
    pytest.fail("no actor is running")


def test_every_picture_has_one_row_even_if_workers_are_killed(
    cluster: TwoNodes, model_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    exported = export_once(model_folder, tmp_path_factory)
    pictures = [tmp_path / "in" / f"{number:03}.png" for number in range(120)]
    pictures[0].parent.mkdir()
    for number, path in enumerate(pictures):
        noise_picture(number % 7).save(path)
    bad = pictures[10:100:30]
    for path in bad:
        path.write_text("no picture")
    write_tar(tmp_path / "in" / "more.tar", [(f"{number}.png", png(number)) for number in range(3)])
    out = tmp_path / "out"
    arguments = [tmp_path / "in", "--output", out, "--format", "jsonl"]
    arguments += ["--model", exported, "--files-per-shard", 2]

    process = start(cluster, *arguments)
    deadline = time.monotonic() + 120
    while shards(out) < 5:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill_an_actor()
    while shards(out) < 15:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert shards(out) < 50
    cluster.remove_node()
    status, errors = finish(process)
    assert status == 1, errors  # some pictures could not be read
    assert "123 rows in 61 new files" in errors
    assert "3 of them with an error" in errors

    rows = rows_of(out)
    archive = tmp_path / "in" / "more.tar"
    expected = [*map(str, pictures), *(f"{archive}/{number}.png" for number in range(3))]
    assert sorted(row["file"] for row in rows) == sorted(expected)
    captioner = Captioner.load(exported, device="cpu")
    caption_of = [captioner.caption(noise_picture(number)).text for number in range(7)]
    for row in rows:
        path = Path(row["file"])
        if path in bad:
            assert row == {"file": str(path), "error": "not a picture in a format that Pillow can read"}
        else:
            assert row["caption"] == caption_of[int(path.stem) % 7]


def test_rerun_does_only_what_is_missing(
    cluster: TwoNodes, model_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    exported = export_once(model_folder, tmp_path_factory)
    (tmp_path / "in").mkdir()
    for number in range(6):
        noise_picture(number).save(tmp_path / "in" / f"{number}.png")
    out = tmp_path / "out"
    arguments = [tmp_path / "in", "--output", out, "--format", "jsonl"]
    arguments += ["--model", exported, "--files-per-shard", 2]
    assert finish(start(cluster, *arguments))[0] == 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}
    assert len(before) == 3
    lost = next(iter(before))
    lost.unlink()
    noise_picture(9).save(tmp_path / "in" / "9.png")
    status, errors = finish(start(cluster, *arguments))
    assert (status, "3 rows in 2 new files" in errors) == (0, True), errors
    assert {row["file"] for row in rows_of(out)} == {str(path) for path in (tmp_path / "in").iterdir()}
    assert len(rows_of(out)) == 7
    unchanged = [path for path in before if path != lost]
    assert all(path.stat().st_mtime_ns == before[path] for path in unchanged)
    status, errors = finish(start(cluster, *arguments))
    assert (status, "nothing to do: all pictures are captioned in" in errors) == (0, True), errors
    status, errors = finish(start(cluster, *arguments, "--beam-size", 2))
    assert (status, "has captions made with another decoding; choose another --output" in errors) == (
        1,
        True,
    ), errors
