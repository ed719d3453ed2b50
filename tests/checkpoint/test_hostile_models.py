"""Malicious model folders: each is refused in one line, with little memory and without running code."""

import json
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from captioner.checkpoint.folder import CHECKSUM, FILES, GRAPHS, WEIGHTS
from captioner.cli.main import main
from captioner.config import BackendName
from captioner.inference import Captioner
from tests.backends.exports import export_once
from tests.conftest import noise_picture

Damage = Callable[[Path], object]


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_weights(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def safetensors(header: Any, length: int | None = None, body: bytes = b"") -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + body


class Exploit:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch exploited",)


def huge(folder: Path) -> None:
    change_json(folder / "config.json", lambda config: config["decoder"].update(hidden_dim=65_000))


HOSTILE: dict[str, tuple[Damage, str]] = {
    "a header longer than the file": (
        lambda f: (f / "model.safetensors").write_bytes(safetensors({}, length=2**62)),
        "is damaged or truncated",
    ),
    "a header of no length": (
        lambda f: (f / "model.safetensors").write_bytes(b"\0" * 8),
        "is damaged or truncated",
    ),
    "a header that is not JSON": (
        lambda f: (f / "model.safetensors").write_bytes(safetensors(b"{{{{")),
        "is damaged or truncated",
    ),
    "a tensor of 100 GB that is missing": (
        lambda f: (f / "model.safetensors").write_bytes(
            safetensors(
                {"decoder.output.bias": {"dtype": "F32", "shape": [25 * 10**9], "data_offsets": [0, 10**11]}}
            )
        ),
        "is damaged or truncated",
    ),
    "a shape that overflows": (
        lambda f: (f / "model.safetensors").write_bytes(
            safetensors(
                {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, body=b"1234"
            )
        ),
        "is damaged or truncated",
    ),
    "tensors that overlap": (
        lambda f: (f / "model.safetensors").write_bytes(
            safetensors(
                {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, body=b"1234"
            )
        ),
        "is damaged or truncated",
    ),
    "a pickle in place of weights": (
        lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Exploit())),
        "is damaged or truncated",
    ),
    "sizes of 100 GB in the config": (huge, "config.json states"),
    "weights that are not numbers": (
        lambda f: change_weights(f, lambda w: w["decoder.output.bias"].fill(np.nan)),
        "has weights that are not finite, such as decoder.output.bias",
    ),
    "a weight of another dtype": (
        lambda f: change_weights(
            f, lambda w: w.update({"decoder.output.bias": np.array(["a"] * 3).view(np.uint8)})
        ),
        "do not match one another",
    ),
    "a weight missing": (
        lambda f: change_weights(f, lambda w: w.pop("decoder.output.bias")),
        "lacks decoder.output.bias",
    ),
    "an unknown weight": (
        lambda f: change_weights(f, lambda w: w.update({"../../evil": np.zeros(3, np.float16)})),
        "has ../../evil",
    ),
    "a vocabulary that is too short": (
        lambda f: change_json(
            f / "vocabulary.json",
            lambda content: content["words"].pop(),
        ),
        "do not match one another",
    ),
    "a vocabulary that is not a list": (
        lambda f: (f / "vocabulary.json").write_text('"words"'),
        "is damaged or truncated",
    ),
    "JSON that is a million deep": (
        lambda f: (f / "config.json").write_text('{"a":' * 10**6 + "1" + "}" * 10**6),
        "is damaged or truncated",
    ),
    "metrics that are a million deep": (
        lambda f: (f / "metrics.json").write_text("[" * 10**6 + "]" * 10**6),
        "is damaged or truncated",
    ),
    "a version of the future": (
        lambda f: change_json(f / "config.json", lambda config: config.update(format_version=99)),
        "format_version must be 1, not 99; a newer captioner may read it",
    ),
    "a backbone that is a path": (
        lambda f: change_json(f / "config.json", lambda config: config.update(backbone="../../evil")),
        "timm has no model named",
    ),
    "a backbone from the network": (
        lambda f: change_json(f / "config.json", lambda config: config.update(backbone="hf-hub:evil/model")),
        "timm has no model named",
    ),
    "sizes that are not numbers": (
        lambda f: change_json(f / "config.json", lambda config: config["grid"].update(rows="9")),
        "is damaged or truncated",
    ),
    "a grid of nothing": (
        lambda f: change_json(f / "config.json", lambda config: config["grid"].update(rows=-1)),
        "is damaged or truncated",
    ),
    "a link out of the folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to("/etc/passwd")),
        "is damaged or truncated",
    ),
    "a link to itself": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("config.json")),
        "lacks config.json",
    ),
    "a folder in place of a file": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        "lacks config.json",
    ),
}


def rename_weights(folder: Path, location: str) -> None:
    """Let a graph read its weights from another place, where they are."""
    graph = ir.load(folder / GRAPHS["step"])
    for value in graph.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.ExternalTensor(
                location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name
            )
    (folder / GRAPHS["step"]).write_bytes(ir.to_proto(graph).SerializeToString())


def without_output(path: Path, name: str) -> None:
    graph = ir.load(path)
    outputs = [value for value in graph.graph.outputs if value.name != name]
    graph.graph.outputs.clear()
    graph.graph.outputs.extend(outputs)
    path.write_bytes(ir.to_proto(graph).SerializeToString())


HOSTILE_GRAPHS: dict[str, tuple[Damage, str]] = {
    "a file that is not a graph": (
        lambda f: (f / GRAPHS["step"]).write_bytes(b"\xff" * 99),
        "step.onnx is damaged or truncated",
    ),
    "a graph that reads outside": (
        lambda f: rename_weights(f, str(shutil.copy(f / WEIGHTS, f.parent / "outside.bin"))),
        "step.onnx reads other files than model.safetensors",
    ),
    "a graph that reads above": (
        lambda f: rename_weights(f, f"../{Path(shutil.copy(f / WEIGHTS, f.parent / 'above.bin')).name}"),
        "step.onnx reads other files than model.safetensors",
    ),
    "a step without attention": (
        lambda f: without_output(f / GRAPHS["step"], "alphas"),
        "lack alphas; export it again",
    ),
    "a start without a state": (
        lambda f: without_output(f / GRAPHS["start"], "state.hidden"),
        "lack state.hidden; export it again",
    ),
    "a graph of another model": (
        lambda f: shutil.copy(f / GRAPHS["start"], f / GRAPHS["step"]),
        "",
    ),
}


@contextmanager
def little_memory() -> Iterator[None]:
    """Limit this process to 4 GB more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = psutil.Process().memory_info().vms + 4 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    noise_picture(0).save(tmp_path / "0.png")
    monkeypatch.chdir(tmp_path)

    def check(folder: Path, message: str, *flags: str) -> None:
        with little_memory(), pytest.raises(SystemExit) as ended:
            main(["caption", "0.png", "--model", str(folder), *flags])
        assert ended.value.code == 1
        printed = capfd.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("captioner: ")
        assert message in line
        assert len(line) < 1000
        assert not Path("exploited").exists()

    return check


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_folder_is_refused_in_one_line(
    kind: str, model_folder: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    damage, message = HOSTILE[kind]
    folder = Path(shutil.copytree(model_folder, tmp_path / "hostile"))
    (folder / CHECKSUM).unlink()  # which whoever made the folder would have adapted
    damage(folder)
    refused(folder, message, "--device", "cpu")


@pytest.mark.parametrize("kind", HOSTILE_GRAPHS)
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_hostile_graph_is_refused_in_one_line(
    kind: str,
    backend: str,
    model_folder: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    refused: Callable[..., None],
) -> None:
    damage, message = HOSTILE_GRAPHS[kind]
    folder = Path(shutil.copytree(export_once(model_folder, tmp_path_factory), tmp_path / "hostile"))
    (folder / CHECKSUM).unlink()
    damage(folder)
    refused(folder, message, "--backend", backend)


@pytest.mark.parametrize("backend", ["onnx", "openvino", "torch"])
@pytest.mark.parametrize("linked", [{*FILES, *GRAPHS.values()}, {WEIGHTS}], ids=["all", "the weights"])
def test_folder_of_links_is_followed(
    linked: set[str],
    backend: BackendName,
    model_folder: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Download caches consist of links to files elsewhere, under other names."""
    exported = export_once(model_folder, tmp_path_factory)
    cache, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    cache.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(exported.iterdir())):
        if path.name in linked:
            shutil.copy(path, blobs / str(number))
            (cache / path.name).symlink_to(Path("../../blobs") / str(number))
        else:
            shutil.copy(path, cache)
    found, expected = (
        Captioner.load(folder, backend=backend, device="cpu").caption(noise_picture(0)).text
        for folder in (cache, exported)
    )
    assert found == expected
