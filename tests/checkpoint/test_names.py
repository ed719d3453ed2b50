"""Models by name, and on the Hub: a server on this machine stands for it."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from captioner.checkpoint.folder import CHECKSUM, FILES, SHIPPED_MODEL, WEIGHTS
from captioner.checkpoint.names import find_model, is_on_hub
from captioner.errors import ModelFolderError
from captioner.inference import Captioner
from tests.checkpoint.local_hub import LocalHub, serve_hub
from tests.conftest import ROOT

PICTURE = ROOT / "examples" / "bus.jpg"


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    with serve_hub() as running:
        yield running


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def run(*arguments: str, home: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own: huggingface_hub reads its settings when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return subprocess.run(
        [sys.executable, "-m", "captioner", *arguments],
        env={**kept, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def model_files(folder: Path = SHIPPED_MODEL) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_names_of_folders_and_of_models_that_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model() == find_model("everyday") == find_model(Path("everyday")) == SHIPPED_MODEL
    assert find_model(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    Path("everyday").mkdir()
    assert find_model("everyday") == Path("everyday")
    assert find_model("runs/everyday") == Path("runs/everyday")
    assert not is_on_hub("hub/model")


@pytest.mark.parametrize(
    "name", ["hf://owner", "hf://", "hf://a/b/c", "hf://a/b@", "hf://a/b c", "hf:owner/name", "hf://a/../b"]
)
def test_malformed_names_are_refused(name: str) -> None:
    for given in (name, Path(name)):
        with pytest.raises(ModelFolderError, match="write hf://OWNER/NAME"):
            find_model(given)


def test_model_is_downloaded_once_and_then_needs_no_network(hub: LocalHub, home: Path) -> None:
    commit = hub.commit("someone/everyday", model_files())
    hub.commit("someone/everyday", {**model_files(), "config.json": b"{}"})  # main, which is broken
    name = f"hf://someone/everyday@{commit}"
    first = run("caption", str(PICTURE), "--model", name, home=home, HF_ENDPOINT=hub.address)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{PICTURE}\t{Captioner.load().caption(PICTURE).text}\n"
    assert f"captioner: the model is hf://someone/everyday@{commit}" in first.stderr
    hub.requests.clear()
    nowhere = "http://127.0.0.1:9"
    for settings in ({"HF_ENDPOINT": nowhere}, {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "1"}):
        again = run("info", name, home=home, **settings)
        assert again.returncode == 0, again.stderr
    assert not hub.requests
    broken = run("info", "hf://someone/everyday", home=home, HF_ENDPOINT=hub.address)
    assert broken.returncode == 1
    assert "is damaged or truncated" in broken.stderr.splitlines()[-1]


def test_what_is_not_a_model_of_ours_is_refused_before_it_is_downloaded(hub: LocalHub, home: Path) -> None:
    hub.commit("someone/else", {"config.json": b"{}", "pytorch_model.bin": b"\0" * 1000})
    hub.requests.clear()
    result = run("info", "hf://someone/else", home=home, HF_ENDPOINT=hub.address)
    assert result.returncode == 1
    assert "hf://someone/else is not a captioner model: it lacks model.safetensors" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not any("/resolve/" in request for request in hub.requests)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://no/such", "has no such public repository"),
        ("hf://someone/known@v9", "has no such revision"),
        ("hf://someone/--", "Repo id must"),
    ],
)
def test_names_that_the_hub_does_not_know_are_reported_in_one_line(
    hub: LocalHub, home: Path, name: str, message: str
) -> None:
    hub.commit("someone/known", dict.fromkeys(FILES, b""))
    result = run("info", name, home=home, HF_ENDPOINT=hub.address)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_pushed_model_is_the_same_when_it_is_loaded_and_its_card_has_a_header(
    hub: LocalHub, home: Path, model_folder: Path
) -> None:
    settings = {"home": home, "HF_ENDPOINT": hub.address}
    (model_folder / "private.txt").write_text("not for others")
    refused = run("push", str(model_folder), "me/tiny", HF_TOKEN="hf_x", **settings)
    assert "give one with --license" in refused.stderr
    assert "me/tiny" not in hub.commits
    anonymous = run("push", str(model_folder), "me/tiny", "--license", "mit", **settings)
    assert anonymous.returncode == 1
    assert "log in with: hf auth login" in anonymous.stderr
    pushed = run("push", str(model_folder), "me/tiny", "--license", "mit", HF_TOKEN="hf_x", **settings)
    assert pushed.returncode == 0, pushed.stderr
    files = list(hub.commits["me/tiny"].values())[-1]
    assert set(files) == {*FILES, CHECKSUM, "README.md", ".gitattributes"}
    assert all(files[name] == (model_folder / name).read_bytes() for name in FILES)
    header = card_header(files["README.md"])
    assert (header["license"], header["library_name"]) == ("mit", "captioner")
    info = run("info", "hf://me/tiny", **settings)
    assert "licence    mit" in info.stdout, info.stderr


def test_card_of_the_model_becomes_the_repositorys_with_its_scores(hub: LocalHub, home: Path) -> None:
    pushed = run(
        "push", str(SHIPPED_MODEL), "me/everyday", home=home, HF_ENDPOINT=hub.address, HF_TOKEN="hf_x"
    )
    assert pushed.returncode == 0, pushed.stderr
    files = list(hub.commits["me/everyday"].values())[-1]
    card = (SHIPPED_MODEL / "MODEL_CARD.md").read_text("utf-8")
    body = card.partition("\n---\n")[2]
    assert files["README.md"].decode().endswith(body)
    header = card_header(files["README.md"])
    assert header["license_name"] == "research and education"
    (entry,) = header["model-index"]
    found = {
        (result["dataset"]["name"], metric["name"])
        for result in entry["results"]
        for metric in result["metrics"]
    }
    assert {("everyday", "CIDEr"), ("flickr8k", "BLEU-4")} <= found


def test_model_pushed_over_another_replaces_all_of_it(hub: LocalHub, home: Path, model_folder: Path) -> None:
    hub.commit("me/other", {**model_files(), "notes.txt": b"kept"})
    (model_folder / CHECKSUM).unlink()
    settings = {"home": home, "HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_x"}
    pushed = run("push", str(model_folder), "me/other", "--license", "mit", **settings)
    assert pushed.returncode == 0, pushed.stderr
    files = list(hub.commits["me/other"].values())[-1]
    assert set(files) == {*FILES, CHECKSUM, "README.md", "MODEL_CARD.md", "notes.txt"}  # and no graphs
    weights = hashlib.sha256(files[WEIGHTS]).hexdigest()
    assert files[CHECKSUM].decode() == f"{weights}  {WEIGHTS}\n"
    private = run("push", str(model_folder), "me/other", "--license", "mit", "--private", **settings)
    assert "me/other exists and is public" in private.stderr


def card_header(card: bytes) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", card.decode(), re.DOTALL)
    assert match
    return dict(yaml.safe_load(match[1]))


def test_weights_that_were_damaged_or_replaced_are_refused(model_folder: Path) -> None:
    Captioner.load(model_folder)
    weights = bytearray((model_folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (model_folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(ModelFolderError, match=f"are not those of its {CHECKSUM}"):
        Captioner.load(model_folder)
    (model_folder / CHECKSUM).unlink()  # older folders have none
    Captioner.load(model_folder)
