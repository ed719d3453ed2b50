"""The wheel, unpacked elsewhere and used from there."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

USE = """
import json, sys
from functools import partial
from pathlib import Path

import captioner
from captioner import Captioner
from captioner.config import DecoderConfig, EncoderConfig
from captioner.objects.categories import mentions
from captioner.training.captioning import CaptioningTask
from captioner.training.options import RunOptions
from captioner.training.recipe import Recipe, TrainingConfig
from captioner.training.run import training_run
from captioner_datasets.custom import CustomCaptions

unpacked, photo = Path(sys.argv[1]), sys.argv[2]
assert Path(captioner.__file__).is_relative_to(unpacked), captioner.__file__
assert [mention.category for mention in mentions(["two", "dogs"])] == ["dog"]
assert Captioner.load().caption(photo).text
rows = [{"image": photo.rpartition("/")[2], "caption": "a man", "split": split} for split in ("train", "dev")]
file = Path(photo).parent / "captions.jsonl"
file.write_text("".join(json.dumps(row | {"image": f"{row['split']}.jpg"}) + chr(10) for row in rows))
records = CustomCaptions(captions=file).read(["train", "dev"])
recipe = Recipe(
    encoder=EncoderConfig(backbone="test_efficientnet", image_size=64, weights=Path(sys.argv[3])),
    decoder=DecoderConfig(embedding_dim=8, hidden_dim=8, attention_dim=8),
    training=TrainingConfig(epochs=1, min_count=1, batch_size=1),
)
options = RunOptions(out=Path("run"), cache_dir=Path("cache"), workers=0)
make_task = partial(
    CaptioningTask.prepare, recipe=recipe, train=records[:1], dev=records[1:], options=options
)
with training_run(recipe=recipe, make_task=make_task, options=options, command={}) as trainer:
    print("step", trainer.train_step(list(loader(trainer)), 0)["captions"])
"""
LOADER = """
from captioner.data.batching import load_batches
def loader(trainer):
    return load_batches(trainer.task.train, trainer._epoch_batches(0), num_workers=0)
"""


@pytest.mark.slow
def test_wheel_captions_draws_and_trains_from_another_folder(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from captioner.model.encoder import Encoder

    source = tmp_path / "source"  # setuptools would leave its build in the working tree
    for name in ("captioner", "datasets"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run([*build, "--wheel-dir", str(tmp_path)], check=True, capture_output=True, cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    for name in ("photo", "train", "dev"):
        (tmp_path / f"{name}.jpg").write_bytes((ROOT / "examples" / "horses.jpg").read_bytes())
    weights = Encoder(backbone="test_efficientnet").cnn.state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "weights.safetensors")
    environment = os.environ | {"PYTHONPATH": str(unpacked)}

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    start = "from captioner.cli.main import main; main()"
    drawn = ("--overlay", "figures", "--gallery", "page.html")
    assert run("-c", start, "caption", "photo.jpg", *drawn).startswith("photo.jpg\t")
    assert (tmp_path / "figures" / "photo.attention.png").exists()
    assert "<script>" in (tmp_path / "page.html").read_text()
    used = run("-c", LOADER + USE, str(unpacked), str(tmp_path / "photo.jpg"), "weights.safetensors")
    assert used.splitlines()[-1] == "step 1"
