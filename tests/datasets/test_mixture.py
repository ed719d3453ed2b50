"""Several data sets in one run: how the file is read, how often their pictures come, and what is scored."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from captioner.cli.main import main as captioner_main
from captioner.data.epoch_order import epoch_batches
from captioner.errors import CaptionerError
from captioner.evaluation.metrics import score_by_dataset, score_captions
from datasets.custom import CustomCaptions
from datasets.mixture import Mixture
from tests.conftest import noise_picture
from tests.training.tiny_runs import flickr8k_flags, read_log, run_here, write_flickr8k


def write_custom(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """Pictures with captions in `folder`, as (name, caption, split)."""
    folder.mkdir()
    for number, name in enumerate(dict.fromkeys(name for name, _, _ in rows)):
        noise_picture(100 + number).save(folder / name)
    lines = [json.dumps({"image": name, "caption": text, "split": split}) for name, text, split in rows]
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def flickr8k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Flickr8k and a recipe, to be copied."""
    folder = tmp_path_factory.mktemp("flickr8k") / "data"
    write_flickr8k(folder)
    return folder


@pytest.fixture
def sets(flickr8k: Path, tmp_path: Path) -> Path:
    """A tiny Flickr8k and captions of one's own, in which two pictures have the names of the other's."""
    shutil.copytree(flickr8k, tmp_path, dirs_exist_ok=True)
    rows = [("0.jpg", "a red dog runs", "train"), ("1.png", "a boy", "train"), ("4.jpg", "a girl", "dev")]
    write_custom(tmp_path / "own", rows)
    path = tmp_path / "sets.json"
    write_sets(path, {"format": "custom", "captions": "own/captions.jsonl", "weight": 2})
    return path


def write_sets(path: Path, own: Any) -> None:
    path.write_text(json.dumps({"flickr8k": {"format": "flickr8k", "root": "flickr8k"}, "own": own}))


def test_records_are_those_of_each_reader_with_name_and_weight(sets: Path) -> None:
    records = Mixture(sets=sets).read(["train", "dev"])
    assert Counter((one.dataset, one.split, one.weight) for one in records) == {
        ("flickr8k", "train", 1): 4,
        ("flickr8k", "dev", 1): 2,
        ("own", "train", 2): 2,
        ("own", "dev", 2): 1,
    }
    alone = CustomCaptions(captions=sets.parent / "own" / "captions.jsonl").read(["dev"])
    (own,) = (one for one in records if one.dataset == "own" and one.split == "dev")
    assert (own.source, own.captions) == (alone[0].source, alone[0].captions)
    assert len({one.image_id for one in records}) == len(records)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"captions": "own/captions.jsonl"}, "own must be an object with a format: flickr8k, "),
        ({"format": "parquet"}, "own must be an object with a format"),
        ({"format": "custom", "captions": "own/captions.jsonl", "root": "x"}, "own has no setting 'root'"),
        ({"format": "custom", "captions": 3}, "own: expected a path in quotes, not 3"),
        ({"format": "custom"}, "own: .*captions"),
        ({"format": "custom", "captions": "own/captions.jsonl", "weight": 0}, "own: .*> 0"),
        ({"format": "custom", "captions": "own/none.jsonl"}, "own: .*none.jsonl is missing"),
        ({"format": []}, "own must be an object with a format"),
        ([], "own must be an object"),
    ],
)
def test_mistake_in_the_file_is_named(sets: Path, own: Any, message: str) -> None:
    write_sets(sets, own)
    with pytest.raises(CaptionerError, match=message):
        Mixture(sets=sets).read(["train"])


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", "{'a': 1}", '{"a": {"format": "coco"}, "a": {"format": "coco"}}'),
        *('{"a/b": {"format": "coco"}}', '{"": {"format": "coco"}}', '{"a\\n": {"format": "coco"}}'),
    ],
)
def test_file_that_names_no_data_sets_or_oddly_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sets.json"
    path.write_text(content)
    with pytest.raises(CaptionerError, match=r"sets\.json"):
        Mixture(sets=path).read(["train"])


def test_default_paths_are_relative_to_the_file_too(sets: Path) -> None:
    sets.write_text('{"a": {"format": "coco"}}')
    with pytest.raises(CaptionerError, match=re.escape(str(sets.parent / "annotations"))):
        Mixture(sets=sets).read(["dev"])


def test_each_data_set_of_a_mixture_may_have_annotated_objects(sets: Path) -> None:
    (sets.parent / "boxes").mkdir()
    own = {"format": "custom", "captions": "own/captions.jsonl", "instances": "boxes/own.json"}
    write_sets(sets, own)
    records = Mixture(sets=sets).read(["train", "dev"])
    found = {(one.dataset, one.split, one.instances) for one in records}
    boxes = sets.parent / "boxes" / "own.json"
    assert found == {
        *(("flickr8k", split, None) for split in ("train", "dev")),
        ("own", "train", boxes),
        ("own", "dev", None),
    }


def drawn(weights: list[float], epoch: int, **more: int) -> list[int]:
    batches = epoch_batches(
        len(weights), batch_size=3, seed=0, epoch=epoch, weights=np.array(weights), **more
    )
    return [key.index for batch in batches for key in batch]


def test_pictures_come_as_often_as_their_weight_says() -> None:
    weights = [1.0, 2.5, 0.5, 1.0, 3.0]
    counts = np.array([[Counter(drawn(weights, epoch))[index] for index in range(5)] for epoch in range(400)])
    assert (counts.sum(axis=1) == 8).all()
    assert (np.abs(counts - weights) < 1).all()  # each epoch has the weight, rounded up or down
    np.testing.assert_allclose(counts.mean(axis=0), weights, atol=0.1)


def test_epoch_of_equal_weights_is_one_without_weights() -> None:
    keys = epoch_batches(10, batch_size=3, seed=5, epoch=2)
    assert epoch_batches(10, batch_size=3, seed=5, epoch=2, weights=np.ones(10)) == keys


def test_processes_share_a_weighted_epoch() -> None:
    weights = [2.0, 1.0, 0.5, 2.5]
    shares = [drawn(weights, 0, process=process, num_processes=2) for process in (0, 1)]
    assert Counter(shares[0]) + Counter(shares[1]) == Counter(drawn(weights, 0))


def test_each_data_set_is_scored_alone_and_the_mean_counts_them_alike() -> None:
    references = {
        "a/1": ["a dog runs"],
        "a/2": ["a cat sits on a mat"],
        "b/1": ["two men walk"],
        "b/2": ["a boat"],
    }
    captions = {
        "a/1": "a dog sits",
        "a/2": "a cat sits on a mat",
        "b/1": "two dogs walk",
        "b/2": "a red boat",
    }
    dataset_of = {name: name[0] for name in references}
    scores = score_by_dataset(captions, references, dataset_of=dataset_of, with_meteor=False)  # it is slow
    for name in ("a", "b"):
        own = {key: value for key, value in references.items() if key[0] == name}
        alone = score_captions({key: captions[key] for key in own}, own, with_meteor=False)
        assert scores.by_dataset[name] == alone
    ciders = [one.cider for one in scores.by_dataset.values()]
    assert scores.mean.cider == pytest.approx(sum(ciders) / 2)
    assert scores.entries().keys() == {"dev", "dev/a", "dev/b"}


def test_run_on_several_data_sets_scores_each_and_logs_their_mean(sets: Path) -> None:
    out = sets.parent / "run"
    flags = ["--sets", str(sets), *flickr8k_flags(sets.parent)[2:], "--epochs", "2", "--out", str(out)]
    assert run_here("mixture", *flags).status == 0
    for entry in read_log(out):
        each = [entry[f"dev/{name}"]["bleu_1"] for name in ("flickr8k", "own")]
        assert entry["dev"]["bleu_1"] == pytest.approx(sum(each) / 2)
        assert entry["dev/own"]["cider"] is None  # of a single picture
        assert entry["step"] == 4 * entry["epoch"]  # eight pictures, as own ones come twice, in twos
    metrics = json.loads((out / "best" / "metrics.json").read_text())
    assert metrics["dev/own"].keys() == metrics["dev/flickr8k"].keys()
    assert run_here("--resume", str(out)).status == 0


def test_check_covers_the_data_sets_together(sets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A training picture of one that is a dev picture of the other, under another name."""
    assert run_here("check", "mixture", "--sets", str(sets), "--min-count", "1").status == 0
    page = capsys.readouterr().out
    assert "flickr8k" in page
    assert "own" in page
    with ZipFile(sets.parent / "flickr8k" / "pictures.zip") as archive:
        (sets.parent / "own" / "1.png").write_bytes(archive.read("4.jpg"))
    assert run_here("check", "mixture", "--sets", str(sets), "--min-count", "1").status == 1
    assert "pictures are in two splits under other names" in capsys.readouterr().out
    with ZipFile(sets.parent / "flickr8k" / "pictures.zip") as archive:
        (sets.parent / "own" / "1.png").write_bytes(archive.read("1.jpg"))
    assert run_here("check", "mixture", "--sets", str(sets), "--min-count", "1").status == 0
    assert "in two data sets" in capsys.readouterr().out


def test_evaluate_prints_the_scores_of_each_data_set(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captioner.evaluation.metrics.has_java", lambda: False)  # METEOR is slow
    names = ["flickr8k/4.jpg", "flickr8k/5.jpg", "own/4.jpg"]
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": name, "caption": "a dog jumps"} for name in names]))
    with pytest.raises(SystemExit) as exit_:
        captioner_main(["evaluate", "mixture", "--sets", str(sets), "--results", str(results)])
    assert not exit_.value.code
    lines = capsys.readouterr().out.splitlines()
    pages = {name: lines[lines.index(name) + 1] for name in ("flickr8k", "own")}
    assert [page.split() for page in pages.values()] == [["pictures", "2"], ["pictures", "1"]]
