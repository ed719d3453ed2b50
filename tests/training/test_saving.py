"""Saves of a run's best model while another process reads it (`captioner.atomic`)."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from captioner.atomic import readable_folder, recover_folder, replaced_folder
from captioner.checkpoint.folder import has_graphs, model_digest, read_config, read_metrics, read_vocabulary
from captioner.checkpoint.weights import load_checkpoint, save_checkpoint
from captioner.errors import CaptionerError
from captioner.inference import Captioner
from tests.conftest import noise_picture


@pytest.fixture
def best(model_folder: Path) -> Path:
    """A model in a folder that contains nothing else."""
    run = model_folder.with_name("run")
    run.mkdir()
    return model_folder.rename(run / "best")


def on_second_rename(monkeypatch: pytest.MonkeyPatch, folder: Path, action: Callable[[], None]) -> None:
    """Do something when a save has moved the old folder aside and is about to move the new one in."""
    rename = Path.rename

    def watched(path: Path, target: Path) -> Path:
        if target == folder and not folder.exists():
            action()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)


def on_disk(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder, with its time of change and its content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


def read_everything(folder: Path) -> tuple[object, ...]:
    """What the commands read of a model folder."""
    captioner = Captioner.load(folder, device="cpu")
    assert load_checkpoint(folder).config == captioner.config
    return (
        captioner.caption(noise_picture(0)).text,
        read_config(folder),
        read_vocabulary(folder),
        read_metrics(folder),
        has_graphs(folder),
        model_digest(folder),
    )


def test_reading_between_the_renames_of_a_save_changes_nothing_on_disk_and_the_save_succeeds(
    best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader gets the old model; the save is not disturbed and leaves nothing behind."""
    before, checkpoint = read_everything(best), load_checkpoint(best)
    reads = []

    def read() -> None:
        disk = on_disk(best.parent)
        reads.append(read_everything(best))
        assert on_disk(best.parent) == disk

    with monkeypatch.context() as patches:
        on_second_rename(patches, best, read)
        save_checkpoint(best, replace(checkpoint, metrics={"saved": "again"}))
    assert reads == [before]
    assert read_metrics(best) == {"saved": "again"}
    assert [path.name for path in best.parent.iterdir()] == ["best"]


def test_model_is_readable_after_a_crash_between_the_renames_until_its_writer_recovers_it(
    best: Path,
) -> None:
    before, disk = read_everything(best), on_disk(best)
    best.rename(best.with_name(".best.old"))  # what the crash leaves
    left = on_disk(best.parent)
    assert read_everything(best) == before
    assert on_disk(best.parent) == left
    recover_folder(best)
    assert on_disk(best) == disk
    assert readable_folder(best) == best
    recover_folder(best)
    assert on_disk(best) == disk


def test_save_succeeds_after_a_crash_between_the_renames(best: Path) -> None:
    checkpoint = load_checkpoint(best)
    best.rename(best.with_name(".best.old"))
    save_checkpoint(best, replace(checkpoint, metrics={"saved": "again"}))
    assert read_metrics(best) == {"saved": "again"}
    assert [path.name for path in best.parent.iterdir()] == ["best"]


def test_save_whose_second_rename_fails_keeps_the_old_folder(
    best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, failures = on_disk(best), []

    def fail() -> None:
        if not failures:  # what undoes the first rename succeeds
            failures.append(OSError(errno.EIO, "Input/output error"))
            raise failures[0]

    on_second_rename(monkeypatch, best, fail)
    message = r"cannot save .*best: .*Input/output error; what was saved there before is kept"
    with pytest.raises(CaptionerError, match=message), replaced_folder(best) as new:
        (new / "config.json").write_text("{}")
    assert on_disk(best) == disk
    assert [path.name for path in best.parent.iterdir()] == ["best"]
