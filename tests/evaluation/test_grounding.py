import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from captioner.cli.main import main
from captioner.config import GridConfig, PreprocessConfig
from captioner.errors import CaptionerError
from captioner.evaluation.faithfulness import OCCLUDED_SHARE, Faithfulness, OcclusionDrop, occlusion_drops
from captioner.evaluation.grounding import (
    METHODS,
    GroundedWord,
    Grounding,
    UnannotatedWord,
    estimates,
    grounded_words,
)
from captioner.inference import Captioner
from captioner.objects.categories import mentions, table
from captioner.objects.instances import Instances
from captioner.vocabulary import END, START
from tests.conftest import make_caption, noise_picture, torch_model


def found(caption: str) -> list[tuple[str, str]]:
    words = caption.split()
    return [(mention.category, " ".join(words[mention.start : mention.stop])) for mention in mentions(words)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man and two women", [("person", "man"), ("person", "women")]),
        ("a dog eats a hot dog", [("dog", "dog"), ("hot dog", "hot dog")]),
        ("three puppies on benches", [("dog", "puppies"), ("bench", "benches")]),
        ("people at a dining table", [("person", "people"), ("dining table", "dining table")]),
        (
            "tennis rackets by the stop sign",
            [("tennis racket", "tennis rackets"), ("stop sign", "stop sign")],
        ),
        ("he stops at an orange light", []),
        ("a baseball player on a jet ski by the train tracks", [("person", "player")]),
        ("a mother elephant and baby zebras", [("elephant", "mother elephant"), ("zebra", "baby zebras")]),
        ("a mother and baby", [("person", "mother"), ("person", "baby")]),
        ("a pickup truck by a passenger train", [("truck", "pickup truck"), ("train", "passenger train")]),
        ("telephone poles and a double decker bus", [("bus", "double decker bus")]),
        ("", []),
    ],
)
def test_words_name_categories(caption: str, expected: list[tuple[str, str]]) -> None:
    assert found(caption) == expected


def test_table_has_cocos_eighty_categories_and_no_word_twice() -> None:
    names_of = table().names
    assert len(names_of) == 80
    words = [word for names in names_of.values() for word in names]
    assert len(words) == len(set(words))
    assert all(found(word) == [(category, word)] for category, names in names_of.items() for word in names)


def test_hits_and_shares_are_those_of_a_hand_computation(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    """A picture of 96 x 96 whose upper left ninth is a dog. "dog" attends there, "a" to the centre, "runs"
    to both. With raw cells the shares are the attention there; here each cell sees nothing but
    itself, or nearly so."""
    grid = replace(even_grid, receptive_field_std_px=0.3)
    alphas = np.zeros((3, 3, 3))
    alphas[0, 1, 1] = 1.0
    alphas[1, 0, 0] = 1.0
    alphas[2, 0, 0], alphas[2, 1, 1] = 0.6, 0.4
    caption = make_caption(("a", "dog", "runs"), grid, preprocess_config, alphas)
    region = np.zeros((96, 96), dtype=bool)
    region[:32, :32] = True
    (word,) = grounded_words(caption, {"dog": region})
    assert isinstance(word, GroundedWord)
    hits, shares = dict(zip(METHODS, word.hits, strict=True)), dict(zip(METHODS, word.shares, strict=True))
    assert hits == {"model": 1, "uniform": pytest.approx(1 / 9), "gaussian": 0, "shuffled": 0.5}
    assert shares["model"] == pytest.approx(1, abs=1e-6)
    assert shares["shuffled"] == pytest.approx((0 + 0.6) / 2, abs=1e-6)
    assert shares["uniform"] == pytest.approx(1 / 9)
    y = np.exp(-0.5 * (((np.arange(96) + 0.5) / 96 - 0.5) / 0.25) ** 2)
    assert shares["gaussian"] == pytest.approx((y[:32].sum() / y.sum()) ** 2)


def test_name_of_two_words_is_their_mean(even_grid: GridConfig, preprocess_config: PreprocessConfig) -> None:
    grid = replace(even_grid, receptive_field_std_px=0.3)
    alphas = np.zeros((3, 3, 3))
    alphas[0, 0, 0] = alphas[1, 2, 2] = alphas[2, 2, 2] = 1.0
    region = np.zeros((96, 96), dtype=bool)
    region[:32, :32] = True
    (word,) = grounded_words(
        make_caption(("hot", "dog", "here"), grid, preprocess_config, alphas), {"hot dog": region}
    )
    assert word.hits[0] == pytest.approx(0.5)
    assert word.hits[3] == 0


def test_word_for_what_is_not_annotated_is_distinguished(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    caption = make_caption(("a", "dog", "and", "cats"), even_grid, preprocess_config)
    masks = {"cat": np.ones((10, 10), dtype=bool)}
    unannotated, cats = grounded_words(caption, masks)
    assert unannotated == UnannotatedWord("dog")
    np.testing.assert_allclose(cats.shares, 1)  # all of the picture is cat


def test_uniform_attention_equals_the_uniform_baseline(
    even_grid: GridConfig, preprocess_config: PreprocessConfig
) -> None:
    region = np.random.default_rng(0).random((40, 70)) < 0.3
    caption = make_caption(("a", "dog"), even_grid, preprocess_config, np.full((2, 3, 3), 1 / 9))
    (word,) = grounded_words(caption, {"dog": region})
    model, uniform, _, shuffled = word.shares
    assert model == pytest.approx(uniform)
    assert shuffled == pytest.approx(uniform)


def test_mean_is_over_words_and_the_interval_over_pictures() -> None:
    """Pictures of one and of three words; with one picture, or pictures alike, there is no spread."""
    (estimate,) = estimates([[np.array([1.0])], [np.array([0.0])] * 3, []])
    assert estimate.value == 0.25
    assert (estimate.low, estimate.high) == (0.0, 1.0)
    (alike,) = estimates([[np.array([0.3]), np.array([0.5])]] * 9)
    assert alike.low == pytest.approx(0.4)
    assert alike.high == pytest.approx(0.4)


def test_interval_covers_the_truth_as_often_as_stated() -> None:
    """95 % of intervals of 60 fair coins should hold 1/2: of 200, fewer than 180 or all would be odd."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        coins = rng.integers(0, 2, size=60).astype(float)
        (estimate,) = estimates([[np.array([coin])] for coin in coins])
        covered += estimate.low <= 0.5 <= estimate.high
    assert 180 <= covered < 200


def test_margin_is_of_the_same_words(even_grid: GridConfig, preprocess_config: PreprocessConfig) -> None:
    masks = {"dog": np.zeros((96, 96), dtype=bool)}
    masks["dog"][:50, :40] = True
    pictures = []
    for seed in range(5):
        alphas = np.random.default_rng(seed).dirichlet(np.full(9, 0.3), size=2).reshape(2, 3, 3)
        caption = make_caption(("a", "dog"), even_grid, preprocess_config, alphas)
        pictures.append(list(grounded_words(caption, masks)))
    grounding = Grounding.from_words(pictures)
    assert (grounding.num_pictures, grounding.num_words, grounding.num_unannotated) == (5, 5, 0)
    for method in METHODS[1:]:
        difference = grounding.attention_share["model"].value - grounding.attention_share[method].value
        assert grounding.share_margin[method].value == pytest.approx(difference)
    # Uniform is the same for all words here, so the interval of the difference is the model's, moved.
    moved = grounding.attention_share["model"].high - grounding.attention_share["uniform"].value
    assert grounding.share_margin["uniform"].high == pytest.approx(moved)


def test_captions_without_annotated_words_are_refused() -> None:
    with pytest.raises(CaptionerError, match="no word of any caption names a category"):
        Grounding.from_words([[], [UnannotatedWord("dog")]])


def instances_file(path: Path, names: list[str]) -> Path:
    """Pictures of 50 x 40 with a dog on the left half, in two overlapping parts, and a crowd on top."""
    crowd = np.zeros((40, 50), dtype=np.uint8)
    crowd[:10] = 1
    runs = coco_mask.encode(np.asfortranarray(crowd))
    crowd_runs = {"size": runs["size"], "counts": runs["counts"].decode()}
    parts = ([0, 0, 20, 0, 20, 40, 0, 40], [10, 0, 25, 0, 25, 40, 10, 40])
    marked = [(18, 0, [part]) for part in parts] + [(1, 1, crowd_runs)]
    keys = ("category_id", "iscrowd", "segmentation")
    annotations = [
        {
            "id": 3 * image_id + n,
            "image_id": image_id,
            "area": 1,
            "bbox": [0, 0, 1, 1],
            **dict(zip(keys, mark, strict=True)),
        }
        for image_id in range(len(names))
        for n, mark in enumerate(marked)
    ]
    images = [{"id": n, "file_name": name, "height": 40, "width": 50} for n, name in enumerate(names)]
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_masks_are_the_union_of_the_instances_of_a_category(tmp_path: Path) -> None:
    masks = Instances(instances_file(tmp_path / "i.json", ["a.png"])).masks("a.png")
    assert masks.keys() == {"dog", "person"}
    assert masks["dog"][:, :25].all()
    assert not masks["dog"][:, 25:].any()
    assert masks["person"][:10].all()
    assert not masks["person"][10:].any()


def test_files_without_instances_say_so(tmp_path: Path) -> None:
    with pytest.raises(CaptionerError, match="is missing; give an annotation file with instances"):
        Instances(tmp_path / "none.json")
    (tmp_path / "captions.json").write_text('{"images": [{"id": 1}], "annotations": []}')
    with pytest.raises(CaptionerError, match="is not a COCO file with instances"):
        Instances(tmp_path / "captions.json")
    instances = Instances(instances_file(tmp_path / "i.json", ["a.png"]))
    twice = instances_file(tmp_path / "twice.json", ["a/1.png", "b/1.png"])
    with pytest.raises(CaptionerError, match=r"two pictures named 1\.png, which cannot be distinguished"):
        Instances(twice)
    with pytest.raises(CaptionerError, match=r"does not list 1 pictures: b\.png"):
        instances.check_pictures(["a.png", "b.png"])
    assert instances.check_pictures(["a.png", "b.png"], may_lack_some=True) == 1
    with pytest.raises(CaptionerError, match=r"several pictures have the name a\.png; rename them"):
        instances.check_pictures(["a.png", "b.png", "a.png"])
    with pytest.raises(CaptionerError, match=r"file names, which 1 pictures lack; add their file_name"):
        instances.check_pictures(["a.png", ""])


def test_attending_to_the_searched_caption_gives_its_attention(captioner: Captioner) -> None:
    """The attention and probability of a search are those of teacher forcing on its caption."""
    picture = noise_picture(5)
    with torch.no_grad():
        torch_model(captioner).decoder.output.bias[END] += 4  # so that captions end
    caption = captioner.caption(picture)
    assert 0 < len(caption.tokens) < captioner.config.decoding.max_words
    (forced,) = captioner.attend(picture, [" ".join(caption.tokens)])
    assert forced.tokens == caption.tokens
    np.testing.assert_allclose(forced.alphas, caption.alphas, atol=1e-6)
    assert forced.log_prob == pytest.approx(caption.log_prob, abs=1e-5)


def test_given_captions_are_attended_alike_alone_and_together(captioner: Captioner) -> None:
    picture = noise_picture(5)
    texts = ["a dog runs", "A Zebra!", "...", "red cat sits, blue dog runs"]
    together = captioner.attend(picture, texts)
    assert captioner.attend(picture, []) == []
    assert [caption.tokens for caption in together[:3]] == [("a", "dog", "runs"), ("a", "zebra"), ()]
    for text, caption in zip(texts, together, strict=True):
        (alone,) = captioner.attend(picture, [text])
        assert alone.text == caption.text == text
        np.testing.assert_allclose(alone.alphas, caption.alphas, atol=1e-6)
        assert alone.log_prob == pytest.approx(caption.log_prob, abs=1e-4)


@torch.no_grad()
def test_drop_without_attended_cells_is_that_of_a_grid_without_them(captioner: Captioner) -> None:
    """One word by hand: log p(word) with all cells, minus that without the cells it attended to most."""
    caption = captioner.caption(noise_picture(6))
    words = occlusion_drops(captioner, [caption])
    assert len(words) == len(caption.tokens)
    annotations = captioner.annotations(caption.picture)
    decoder, position = torch_model(captioner).decoder, len(caption.tokens) - 1
    ids = captioner.vocabulary.ids(caption.tokens)

    def log_prob(cells: np.ndarray) -> float:
        memory = decoder.prepare_memory(annotations[:, cells])
        state = decoder.initial_state(memory, 1)
        for token in ids[: position + 1]:
            output = decoder.step(torch.tensor([[token]]), state, memory)
            state = output.state
        return float(decoder.logits(output.readout).log_softmax(dim=-1)[0, 0, ids[position + 1]])

    assert ids[0] == START
    alpha = caption.alphas[position].ravel()
    num_occluded = max(round(OCCLUDED_SHARE * alpha.size), 1)
    kept = np.sort(np.argsort(-alpha, kind="stable")[num_occluded:])
    drop = log_prob(np.arange(alpha.size)) - log_prob(kept)
    assert words[position].attended == pytest.approx(drop, abs=1e-5)


def test_faithfulness_is_the_mean_over_words() -> None:
    words = [OcclusionDrop(attended=drop, random=0.5) for drop in (2.0, 0.0)]
    faithfulness = Faithfulness.from_drops([words, []])
    assert faithfulness.num_words == 2
    assert faithfulness.attended.value == 1.0
    assert faithfulness.random.value == 0.5
    assert faithfulness.margin.value == 0.5
    assert faithfulness.share_more.value == 0.5
    with pytest.raises(CaptionerError, match="there are no words"):
        Faithfulness.from_drops([[]])


@pytest.fixture
def coco(tmp_path: Path) -> list[str]:
    """Arguments for a small data set in COCO's format, with instances beside it."""
    names = ["0.png", "1.png"]
    (tmp_path / "pictures").mkdir()
    for number, name in enumerate(names):
        noise_picture(number).save(tmp_path / "pictures" / name)
    captions = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": n, "caption": "a dog runs by a cat"} for n in range(2)],
    }
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    instances_file(tmp_path / "instances.json", names)
    return ["coco", "--images", str(tmp_path / "pictures"), "--captions", str(tmp_path / "captions.json")]


def test_command_writes_every_method_with_its_interval(
    coco: list[str], model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*coco, "--instances", str(tmp_path / "instances.json"), "--words-of", "references"]
    with pytest.raises(SystemExit) as exit_:
        main(["ground", *arguments, "--json", str(tmp_path / "out.json"), "--model", str(model_folder)])
    printed = capfd.readouterr()
    assert exit_.value.code == 0, printed.err
    values = json.loads((tmp_path / "out.json").read_text())
    assert (values["num_words"], values["num_unannotated"]) == (2, 2)
    for measure in ("pointing_game", "attention_share"):
        assert values[measure].keys() == set(METHODS)
        for method, value in values[measure].items():
            low, high = values["intervals"][measure][method]
            assert -1e-9 <= low - 1e-9 <= value <= high + 1e-9
    assert values["attention_share"]["uniform"] == pytest.approx(0.5)
    assert "2 words in 2 pictures; 2 more name objects that are not annotated" in printed.out
    assert f"{values['attention_share']['model']:.1%}" in printed.out


def test_command_measures_faithfulness_without_instances(
    coco: list[str], model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                "ground",
                *coco,
                "--faithfulness",
                "--json",
                str(tmp_path / "o.json"),
                "--model",
                str(model_folder),
            ]
        )
    assert exit_.value.code == 0
    values = json.loads((tmp_path / "o.json").read_text())
    assert values["margin"] == pytest.approx(values["attended"] - values["random"])
    assert "drop without the most attended cells" in capfd.readouterr().out


def test_command_reports_what_is_missing(
    coco: list[str], model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for arguments, status, message in (
        ([], 2, "captioner: --instances FILE is needed"),
        (["--instances", "none.json"], 1, "captioner: none.json is missing"),
        (
            ["--instances", "none.json", "--faithfulness"],
            2,
            "captioner: give --instances or --faithfulness, not both",
        ),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["ground", *coco, *arguments, "--model", str(model_folder)])
        assert exit_.value.code == status
        assert capfd.readouterr().err.startswith(message)
