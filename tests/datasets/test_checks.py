"""What `train.py check` finds, and what training refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from captioner.errors import CaptionerError
from captioner.records import CaptionedImage
from captioner.training.recipe import TrainingConfig
from datasets.check_page import check
from datasets.checks import find_problems, leave_out_invalid, require_readable, require_valid
from tests.conftest import noise_picture
from tests.training.tiny_runs import run_here


@pytest.fixture
def records(tmp_path: Path) -> list[CaptionedImage]:
    found = []
    for number, split in enumerate(["train", "train", "train", "dev"]):
        path = tmp_path / f"{number}.png"
        noise_picture(number).save(path)
        captions = ("A dog runs.", f"A dog number {number}")
        found.append(CaptionedImage(image_id=path.name, source=path, captions=captions, split=split))
    return found


def test_valid_data_pass(records: list[CaptionedImage]) -> None:
    require_valid(records)
    page, is_valid = check(records, {}, training=TrainingConfig(min_count=3))
    assert is_valid
    assert "valid: no problems were found" in page
    lines = page.splitlines()
    assert lines[1].split()[:3] == ["train", "3", "6"]
    assert lines[2].split()[:3] == ["dev", "1", "2"]
    assert lines[1].endswith("3, 4, 4, 4")  # words: 3 of "a dog runs", 4 of "a dog number 0"


def test_coverage_equals_a_hand_count(records: list[CaptionedImage]) -> None:
    page, _ = check(records, {}, training=TrainingConfig(min_count=3))
    # a, dog, runs and number occur at least three times in train, its numbers once each
    assert "vocabulary: 8 words (4 of them special) occur at least 3 times in train" in page
    assert f"covers {18 / 21:.2%} of the words of train and 50.0% of its captions wholly" in page
    assert f"covers {6 / 7:.2%} of the words of dev and 50.0% of its captions wholly" in page


def test_each_problem_is_reported_and_refused(records: list[CaptionedImage], tmp_path: Path) -> None:
    cut = tmp_path / "1.png"
    cut.write_bytes(cut.read_bytes()[:60])
    noise_picture(0).save(tmp_path / "same pixels.bmp")
    invalid = [
        *records,
        replace(records[0], image_id="gone", source=tmp_path / "gone.png"),
        replace(records[0], image_id="none", source=tmp_path / "2.png", captions=()),
        replace(records[3], image_id="empty", captions=("A cat.", " . ")),
        replace(records[3], image_id="copy", source=tmp_path / "same pixels.bmp"),
        replace(records[3], image_id="leak", source=records[2].source),
        records[3],
    ]
    page, is_valid = check(invalid, {}, training=TrainingConfig(min_count=1))
    assert not is_valid
    for line in (
        f"  1 pictures are missing:\n    {tmp_path / 'gone.png'}",
        "  1 pictures have no caption:\n    none",
        "  1 captions are empty:\n    empty (' . ')",
        "  1 picture ids are repeated:\n    3.png",
        f"  1 pictures are in two splits:\n    {records[2].source} (train and dev)",
        f"  1 pictures cannot be decoded:\n    {cut}: ",
        f"{records[0].source} in train is {tmp_path / 'same pixels.bmp'} in dev",
    ):
        assert line in page
    with pytest.raises(
        CaptionerError, match=r"1 pictures are missing: .*gone\.png; 1 pictures have no caption"
    ):
        require_valid(invalid)


def test_split_without_pictures_is_invalid(records: list[CaptionedImage]) -> None:
    page, is_valid = check(
        records[:3], {"dev": ["val.json is missing"]}, training=TrainingConfig(min_count=1)
    )
    assert not is_valid
    assert "dev    not read: val.json is missing" in page
    assert "no pictures are in dev" in page
    with pytest.raises(CaptionerError, match="there are no dev pictures"):
        require_valid(records[:3])


def test_name_that_no_file_can_have_is_missing(records: list[CaptionedImage], tmp_path: Path) -> None:
    long = replace(records[0], image_id="long", source=tmp_path / ("x" * 300))
    assert list(find_problems([*records, long])) == ["pictures are missing"]


def test_links_in_a_circle_are_missing_and_endless_captions_are_reported_briefly(
    records: list[CaptionedImage], tmp_path: Path
) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    circle = replace(records[0], image_id="circle", source=tmp_path / "a.png")
    endless = replace(records[0], image_id="endless", captions=("dog " * 25_000_000,))
    problems = find_problems([*records, circle, endless])
    assert problems == {
        "pictures are missing": [str(tmp_path / "a.png")],
        "captions have more than 10,000 characters": ["endless (100,000,000)"],
    }
    with pytest.raises(CaptionerError, match=r"endless \(100,000,000\)\. Fix or remove these") as refused:
        require_valid([*records, circle, endless])
    assert len(str(refused.value)) < 1000


def test_many_names_are_counted_rather_than_all_listed(records: list[CaptionedImage], tmp_path: Path) -> None:
    many = [replace(records[0], image_id=str(n), source=tmp_path / f"gone {n}") for n in range(25)]
    assert len(find_problems(many)["pictures are missing"]) == 25
    page, _ = check(many, {}, training=TrainingConfig(min_count=1))
    assert "and 15 more" in page
    with pytest.raises(CaptionerError, match=r"25 pictures are missing: .* and 22 more"):
        require_valid([*records, *many])


def test_picture_id_in_two_splits_under_two_paths_is_found(
    records: list[CaptionedImage], tmp_path: Path
) -> None:
    noise_picture(9).save(tmp_path / "other.png")
    leaked = replace(records[3], image_id=records[0].image_id, source=tmp_path / "other.png")
    with pytest.raises(CaptionerError, match=r"1 picture ids are in two splits: 0\.png \(train and dev\)"):
        require_valid([*records, leaked])
    page, is_valid = check([*records, leaked], {}, training=TrainingConfig(min_count=1))
    assert not is_valid
    assert "  1 picture ids are in two splits:\n    0.png (train and dev)" in page


def test_pictures_that_cannot_be_read_are_named_at_once_or_left_out(
    records: list[CaptionedImage], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for record in records[:2]:
        assert isinstance(record.source, Path)
        record.source.write_bytes(record.source.read_bytes()[:-40])
    empty = replace(records[2], image_id="empty", captions=("...",))
    partly = replace(records[2], image_id="partly", captions=("...", "A dog."))
    everything = [*records, empty, partly]
    with pytest.raises(
        CaptionerError, match=r"2 pictures cannot be read: \S+0\.png: damaged.*1\.png: damaged.*--skip"
    ):
        require_readable(everything)
    kept = leave_out_invalid(everything)
    assert [record.image_id for record in kept] == [*(record.image_id for record in records[2:]), "partly"]
    assert kept[-1].captions == ("A dog.",)
    assert "left out 4: " in caplog.text
    require_readable(kept)


def test_check_counts_what_a_run_would_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for number, split in enumerate(["train"] * 3 + ["dev"] * 2):
        noise_picture(number).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,a dog,{split}")
    (tmp_path / "0.png").write_bytes(b"no picture")
    (tmp_path / "t.csv").write_text("\n".join(["image,caption,split", *rows]))
    flags = ("check", "custom", "--captions", str(tmp_path / "t.csv"), "--min-count", "1")
    assert run_here(*flags).status == 1
    capsys.readouterr()
    assert run_here(*flags, "--skip-invalid").status == 0
    assert "train          2         2" in capsys.readouterr().out


def test_splits_that_each_number_their_pictures_are_valid(records: list[CaptionedImage]) -> None:
    """Ids from 1 in every file, for other pictures."""
    numbered = [replace(record, image_id=str(number % 3)) for number, record in enumerate(records)]
    assert "picture ids are in two splits" not in find_problems(numbered)
