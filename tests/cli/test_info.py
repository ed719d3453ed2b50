"""`captioner info` and `python -m captioner`."""

import subprocess
import sys
from pathlib import Path

import pytest

from captioner.checkpoint.folder import SHIPPED_MODEL
from captioner.cli.info import describe
from captioner.errors import ModelFolderError
from tests.conftest import ROOT


def test_shipped_model_is_described_in_ten_lines() -> None:
    lines = list(describe(SHIPPED_MODEL))
    assert len(lines) <= 10
    described = dict(lines)
    assert described["grid"] == "10 x 10 cells of 1,280 channels"
    assert described["words"] == "3,902"
    assert described["licence"] == "research and education"
    assert ("scores", "CIDEr 88.5, BLEU-4 25.8 on the dev split of everyday") in lines


def test_model_without_card_or_scores_is_described(model_folder: Path) -> None:
    described = dict(describe(model_folder))
    assert described["licence"] == "not stated in a MODEL_CARD.md"
    assert "not exported" in described["folder"]
    (model_folder / "MODEL_CARD.md").write_text("# No header\n\nlicense: in the text\n")
    assert dict(describe(model_folder)) == described
    (model_folder / "MODEL_CARD.md").write_text("---\nlicense: mit\ntags: [a]\n---\n\ntext\n")
    assert dict(describe(model_folder))["licence"] == "mit"


def test_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="is not a complete model folder"):
        list(describe(tmp_path))


def test_module_is_the_command() -> None:
    command = [sys.executable, "-m", "captioner", "info"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith(f"folder     {SHIPPED_MODEL} (")


def test_run_without_a_finished_epoch_is_told_from_a_wrong_folder(tmp_path: Path) -> None:
    (tmp_path / "run" / "last").mkdir(parents=True)
    with pytest.raises(ModelFolderError, match=r"has not finished an epoch; go on with: train\.py --resume"):
        list(describe(tmp_path / "run" / "best"))
    with pytest.raises(ModelFolderError, match="is not a model folder"):
        list(describe(tmp_path / "best"))
