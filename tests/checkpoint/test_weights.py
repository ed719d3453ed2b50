import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from captioner.atomic import readable_folder, recover_folder, replaced_folder
from captioner.checkpoint.folder import CHECKSUM, FILES, write_checksum
from captioner.checkpoint.weights import CaptioningCheckpoint, load_checkpoint, save_checkpoint
from captioner.config import FORMAT_VERSION, ModelConfig
from captioner.errors import CaptionerError, ModelFolderError
from captioner.model.captioning import CaptioningModel
from captioner.vocabulary import Vocabulary


@pytest.fixture
def checkpoint(
    model: CaptioningModel, model_config: ModelConfig, vocabulary: Vocabulary
) -> CaptioningCheckpoint:
    return CaptioningCheckpoint(model, model_config, vocabulary, {"dev": {"cider": 54.5}})


def test_round_trip_is_bit_exact_and_the_files_are_those_stated(
    checkpoint: CaptioningCheckpoint, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "model", checkpoint, dtype=torch.float32)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted((*FILES, CHECKSUM))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    loaded = load_checkpoint(tmp_path / "model")
    assert (loaded.config, loaded.vocabulary, loaded.metrics) == (
        checkpoint.config,
        checkpoint.vocabulary,
        checkpoint.metrics,
    )
    weights = loaded.model.state_dict()
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(weights[name], value), name


def test_half_precision_round_trip_is_exact_after_the_first_rounding(
    checkpoint: CaptioningCheckpoint, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "first", checkpoint)
    save_checkpoint(tmp_path / "second", load_checkpoint(tmp_path / "first"))
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_saving_replaces_the_whole_old_model(checkpoint: CaptioningCheckpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", checkpoint)
    (tmp_path / "model" / "stray.txt").touch()
    save_checkpoint(tmp_path / "model", replace(checkpoint, metrics={"epoch": 2}))
    assert load_checkpoint(tmp_path / "model").metrics == {"epoch": 2}
    assert not (tmp_path / "model" / "stray.txt").exists()


def test_failed_save_keeps_the_old_model(checkpoint: CaptioningCheckpoint, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", checkpoint)

    def save_on_a_full_disk() -> None:
        with replaced_folder(tmp_path / "model") as aside:
            (aside / "half").touch()
            raise OSError(28, "No space left on device")

    with pytest.raises(
        CaptionerError, match=r"model: .*No space left on device; what was saved there before"
    ):
        save_on_a_full_disk()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert load_checkpoint(tmp_path / "model").metrics == checkpoint.metrics


def test_weights_that_are_not_finite_are_refused_when_loaded(
    checkpoint: CaptioningCheckpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_checkpoint(folder, checkpoint, dtype=torch.float32)
    weights = load_file(folder / "model.safetensors")
    weights["decoder.output.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors")
    write_checksum(folder)
    with pytest.raises(ModelFolderError, match=r"weights that are not finite, such as decoder\.output\.bias"):
        load_checkpoint(folder)


def test_crash_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    (tmp_path / ".last.old").mkdir()
    (tmp_path / ".last.old" / "state").write_text("good")
    recover_folder(tmp_path / "last")
    assert (tmp_path / "last" / "state").read_text() == "good"


def test_model_is_read_between_the_two_renames_and_nothing_is_renamed(
    checkpoint: CaptioningCheckpoint, tmp_path: Path
) -> None:
    """The folder may belong to a process that is about to rename the new one to its place."""
    save_checkpoint(tmp_path / "model", checkpoint)
    assert readable_folder(tmp_path / "model") == tmp_path / "model"
    (tmp_path / "model").rename(tmp_path / ".model.old")
    assert load_checkpoint(tmp_path / "model").metrics == checkpoint.metrics
    assert [path.name for path in tmp_path.iterdir()] == [".model.old"]


def test_weights_that_half_precision_cannot_hold_are_refused(
    checkpoint: CaptioningCheckpoint, tmp_path: Path
) -> None:
    with torch.no_grad():
        checkpoint.model.decoder.output.bias[0] = 1e6
    with pytest.raises(ModelFolderError, match=r"decoder\.output\.bias is not finite"):
        save_checkpoint(tmp_path / "model", checkpoint)
    assert not (tmp_path / "model").exists()


def test_invalid_model_folders_are_refused_with_a_reason(
    checkpoint: CaptioningCheckpoint, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    with pytest.raises(
        ModelFolderError, match=r"is not a model folder; give one that contains model\.safetensors, "
    ):
        load_checkpoint(folder)

    save_checkpoint(folder, checkpoint)
    (folder / "vocabulary.json").unlink()
    with pytest.raises(ModelFolderError, match=r"lacks vocabulary\.json"):
        load_checkpoint(folder)

    save_checkpoint(folder, checkpoint)
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    write_checksum(folder)
    with pytest.raises(ModelFolderError, match="is damaged or truncated"):
        load_checkpoint(folder)

    save_checkpoint(folder, checkpoint)
    change_config(folder, "decoder", hidden_dim=17)
    with pytest.raises(ModelFolderError, match="do not match one another"):
        load_checkpoint(folder)

    save_checkpoint(folder, checkpoint)
    change_config(folder, "grid", offset_px=1.0)
    with pytest.raises(ModelFolderError, match="but its backbone gives"):
        load_checkpoint(folder)

    change_config(folder, format_version=999)
    with pytest.raises(ModelFolderError, match=f"format_version must be {FORMAT_VERSION}, not 999; a newer"):
        load_checkpoint(folder)


def change_config(folder: Path, *sections: str, **changes: object) -> None:
    """Set values in config.json, at the top or in one of its sections."""
    config = json.loads((folder / "config.json").read_text())
    changed = config
    for section in sections:
        changed = changed[section]
    changed.update(changes)
    (folder / "config.json").write_text(json.dumps(config))
