"""Objects that captions make up (CHAIR), by hand."""

import json
import sys
from pathlib import Path

import pytest

from captioner.cli.main import main
from captioner.evaluation.hallucination import find_hallucination


def test_chair_and_recall_equal_a_hand_computation() -> None:
    captions = {
        "1": "a man with a dog and two dogs",  # person by a reference; dogs twice, not there
        "2": "a cat on a couch",  # both there
        "3": "a red wall",  # names nothing
    }
    references = {"1": ["Someone and a woman."], "2": ["A kitten."], "3": ["A bench."]}
    annotated = {"1": {"bench"}, "2": {"couch", "tv"}, "3": set[str]()}
    found = find_hallucination(captions, references, annotated)
    assert found.num_named == 5
    assert found.chair_i == pytest.approx(2 / 5)
    assert found.chair_s == pytest.approx(1 / 3)
    # There: person, bench; cat, couch, tv; bench. Named of these: person; cat, couch.
    assert found.recall == pytest.approx(3 / 6)


def test_captions_that_are_references_make_nothing_up() -> None:
    texts = {"1": "a hot dog on a table", "2": "people ride horses"}
    found = find_hallucination(texts, {key: [text] for key, text in texts.items()}, {"1": [], "2": []})
    assert (found.chair_i, found.chair_s, found.recall) == (0, 0, 1)


def test_captions_that_name_nothing_have_no_chair_i() -> None:
    found = find_hallucination({"1": "a red wall"}, {"1": ["a dog"]}, {"1": []})
    assert found.chair_i is None
    assert "not computed" in found.named()["CHAIR_i"]
    assert (found.chair_s, found.recall) == (0, 0)


def test_pictures_without_objects_have_no_recall() -> None:
    found = find_hallucination({"1": "a dog"}, {"1": ["a wall"]}, {"1": ["orange"]})  # no word names it
    assert (found.chair_i, found.chair_s, found.recall) == (1, 1, None)
    assert "not computed" in found.named()["object recall"]


def write_coco(folder: Path) -> None:
    """Two pictures: a dog's box in one, nothing in the other."""
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 10, "height": 10} for n in (1, 2)]
    texts = [{"id": n, "image_id": n, "caption": text} for n, text in ((1, "A dog."), (2, "A cat."))]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": texts}))
    boxes = [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 5, 5], "iscrowd": 0, "area": 25}]
    categories = [{"id": 7, "name": "dog"}]
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": boxes, "categories": categories})
    )
    results = [{"image_id": 1, "caption": "a dog and a bus"}, {"image_id": 2, "caption": "a cat"}]
    (folder / "results.json").write_text(json.dumps(results))


def test_command_prints_chair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coco(tmp_path)
    files = {name: str(tmp_path / f"{name}.json") for name in ("results", "captions", "instances")}
    arguments = ["--results", files["results"], "--references", files["captions"]]
    command = ["captioner", "evaluate", *arguments, "--instances", files["instances"]]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr("captioner.evaluation.metrics.has_java", lambda: False)  # METEOR is slow
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["CHAIR_i"] == "0.333 (3 objects named)"
    assert lines["CHAIR_s"] == "0.500"
    assert lines["object"] == "recall      1.000"
