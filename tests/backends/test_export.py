"""An exported model gives what the torch model gives, without torch."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from captioner.backends import load, openvino_backend
from captioner.backends.export import export_model
from captioner.backends.exported import ExportedBackend
from captioner.backends.load import load_backend
from captioner.backends.onnx_backend import OnnxBackend
from captioner.backends.openvino_backend import OpenvinoBackend
from captioner.backends.torch_backend import TorchBackend
from captioner.checkpoint.folder import CHECKSUM, FILES, GRAPHS, SHIPPED_MODEL, WEIGHTS, read_vocabulary
from captioner.checkpoint.weights import CaptioningCheckpoint, save_checkpoint
from captioner.cli.main import main
from captioner.config import BackendName, DecodingOptions, ModelConfig
from captioner.decoding.generate import force_decode, generate_captions, padded
from captioner.errors import CaptionerError, ImageError, ModelFolderError
from captioner.inference import Captioner
from captioner.model.captioning import CaptioningModel, make_decoder
from captioner.model.encoder import Encoder
from captioner.vocabulary import Vocabulary
from tests.backends.exports import export_once
from tests.conftest import DECODER_CHANGES, ROOT, SMALL_DECODER, make_captions_differ, noise_picture

OPTIONS = DecodingOptions(beam_size=4, max_words=5)


@pytest.fixture
def exported(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_once(model_folder, tmp_path_factory)


@pytest.mark.parametrize(
    "kind",
    [
        *("multihead", "low rank"),
        *(
            pytest.param(kind, marks=pytest.mark.long)
            for kind in ("the default", "no attention", "dot", "hard", "transformer")
        ),
    ],
)
def test_search_and_teacher_forcing_are_those_of_torch(
    kind: str,
    encoder: Encoder,
    model_config: ModelConfig,
    vocabulary: Vocabulary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In single precision, for any numbers of pictures, hypotheses and cells, while pictures are left out."""
    torch.manual_seed(1)
    config = replace(model_config, decoder=replace(SMALL_DECODER, **DECODER_CHANGES[kind]))
    decoder = make_decoder(config.decoder, annotation_dim=config.annotation_dim, vocab_size=len(vocabulary))
    make_captions_differ(decoder)  # and end at different lengths
    model = CaptioningModel(encoder=encoder, decoder=decoder).eval()
    save_checkpoint(
        tmp_path / "model", CaptioningCheckpoint(model, config, vocabulary, {}), dtype=torch.float32
    )
    export_model(tmp_path / "model", tmp_path / "exported")
    monkeypatch.setattr(openvino_backend, "computes_in_bf16", lambda: False)
    torch_backend = TorchBackend(model)
    for kind_of_backend in (OnnxBackend, OpenvinoBackend):
        exported = kind_of_backend.load(tmp_path / "exported", config, vocabulary)
        assert_same(exported, torch_backend, config, vocabulary)


def assert_same(
    exported: ExportedBackend, torch_backend: TorchBackend, config: ModelConfig, vocabulary: Vocabulary
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, *[config.preprocess.size_px] * 2, 3), np.uint8)
    given = torch_backend.encode(images)
    np.testing.assert_allclose(exported.encode(images), given.numpy(), atol=1e-4)
    annotations = torch.randn(6, 7, config.annotation_dim) * 3
    expected = generate_captions(torch_backend, annotations, OPTIONS)
    found = generate_captions(exported, annotations.numpy(), OPTIONS)
    assert len({hypothesis.tokens for hypotheses in expected for hypothesis in hypotheses}) > 6
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.tokens for one in ours] == [one.tokens for one in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
            np.testing.assert_allclose(one.alphas, other.alphas, atol=1e-5)

    tokens = np.stack([padded([vocabulary.encode("a dog"), vocabulary.encode("red cat sits")])] * 6)
    for ours, theirs in zip(
        force_decode(exported, annotations.numpy(), tokens),
        force_decode(torch_backend, annotations, tokens),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_exported_folder_is_the_model_and_graphs_without_weights(model_folder: Path, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {*FILES, CHECKSUM, *GRAPHS.values()}
    for name in FILES:
        assert (exported / name).read_bytes() == (model_folder / name).read_bytes()
    for name in GRAPHS.values():
        content = (exported / name).read_bytes()
        assert str(ROOT).encode() not in content
        assert b"site-packages" not in content
    assert isinstance(Captioner.load(exported, device="cpu").backend, ExportedBackend)
    assert isinstance(Captioner.load(exported, backend="torch").backend, TorchBackend)
    assert isinstance(Captioner.load(model_folder, device="cpu").backend, TorchBackend)


def test_model_may_be_exported_into_its_own_folder(
    model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (model_folder / "MODEL_CARD.md").write_text("what it is for")
    kept = [*FILES, "MODEL_CARD.md"]
    before = {name: (model_folder / name).read_bytes() for name in kept}
    with pytest.raises(SystemExit) as ended:
        main(["export", "--model", str(model_folder), "--out", str(model_folder)])
    assert ended.value.code == 0
    assert capfd.readouterr().out.startswith(f"{model_folder} (log-probabilities within ")
    assert {name: (model_folder / name).read_bytes() for name in kept} == before
    assert all((model_folder / name).is_file() for name in GRAPHS.values())


def test_export_overwrites_no_other_folder(
    model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["export", "--model", str(model_folder), "--out", str(tmp_path / "mine")])
    assert ended.value.code == 2
    assert "exists; choose a new folder, or the model's own" in capfd.readouterr().err


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_captions_depend_on_neither_batch_nor_threads(
    exported: Path, batch_size: int, threads: int, backend: BackendName
) -> None:
    pictures = [ROOT / "examples" / "bad.jpg", *sorted((ROOT / "examples").glob("*.jpg"))] * 3
    captioner = Captioner.load(exported, backend=backend, threads=threads)
    assert captioner.backend.max_concurrent_batches == threads
    results = [one for batch in captioner.caption_files(pictures, batch_size=batch_size) for one in batch]
    for path, result in zip(pictures, results, strict=True):
        if isinstance(result, ImageError):
            assert not path.exists()
        else:
            alone = captioner.caption(path)
            assert (result.file, result.text) == (str(path), alone.text)
            np.testing.assert_allclose(result.alphas, alone.alphas, atol=1e-5)


WITHOUT = """
import runpy, sys
class NotInstalled:
    def find_spec(name, path, target=None):
        if name.split(".")[0] in ("torch", "timm", "torchvision", "accelerate", "pycocoevalcap"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NotInstalled)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without_torch(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", WITHOUT, "caption.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_captions_and_figures_need_no_torch(exported: Path, model_folder: Path, tmp_path: Path) -> None:
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(pictures):
        noise_picture(number).save(path)
    figures = ["--overlay", tmp_path / "out", "--gallery", tmp_path / "page.html"]
    result = run_without_torch(*pictures, "--model", exported, *figures)
    assert result.returncode == 0, result.stderr
    expected = [Captioner.load(model_folder).caption(path).text for path in pictures]
    lines = [f"{path}\t{text}" for path, text in zip(pictures, expected, strict=True)]
    assert result.stdout.splitlines() == lines
    assert len(list((tmp_path / "out").glob("*.attention.png"))) == 3
    assert (tmp_path / "page.html").is_file()


def test_model_that_was_not_exported_reports_that_it_needs_torch(model_folder: Path, tmp_path: Path) -> None:
    noise_picture(0).save(tmp_path / "0.png")
    result = run_without_torch(tmp_path / "0.png", "--model", model_folder)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"captioner: {model_folder} was not exported, so it needs torch; "
        "install it with: pip install 'captioner[torch]'"
    ]


def test_unavailable_backend_is_refused(model_folder: Path, exported: Path) -> None:
    with pytest.raises(
        CaptionerError, match="was not exported for onnxruntime; do so with: captioner export --model"
    ):
        Captioner.load(model_folder, backend="onnx")
    with pytest.raises(CaptionerError, match="onnxruntime runs on the CPU, not on cuda"):
        Captioner.load(exported, backend="onnx", device="cuda")


def test_graphs_that_do_not_match_are_refused(
    exported: Path, model_config: ModelConfig, tmp_path: Path
) -> None:
    vocabulary = read_vocabulary(exported)

    def load(folder: Path, words: Vocabulary = vocabulary, config: ModelConfig = model_config) -> Any:
        return load_backend(folder, config, words, backend="onnx")

    def copied(name: str) -> Path:
        copied = Path(shutil.copytree(exported, tmp_path / name))
        (copied / CHECKSUM).unlink()  # the checks below are of folders without it
        return copied

    assert load(copied("intact"))
    with pytest.raises(
        ModelFolderError, match=r"have the sizes .*, but its other files state .*; export it again"
    ):
        load(exported, Vocabulary(vocabulary.words[:-1]))
    with pytest.raises(
        ModelFolderError, match=r"have the sizes .*, but its other files state .*; export it again"
    ):
        load(exported, config=replace(model_config, annotation_dim=7))

    folder = copied("truncated-graph")
    graph = folder / GRAPHS["step"]
    graph.write_bytes(graph.read_bytes()[:-50])
    with pytest.raises(ModelFolderError, match=r"step\.onnx is damaged or truncated: .*; export it again"):
        load(folder)

    folder = copied("other-weights")
    weights = load_file(folder / WEIGHTS)
    save_file({**weights, "another": np.zeros(3, np.float16)}, folder / WEIGHTS)
    with pytest.raises(
        ModelFolderError, match=r"was exported from other weights than|is damaged or truncated"
    ):
        load(folder)

    folder = copied("infinite-weight")
    weights["decoder.output.bias"][0] = np.inf
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(ModelFolderError, match=r"weights that are not finite, such as decoder\.output\.bias"):
        load(folder)

    folder = copied("truncated-weights")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5])
    with pytest.raises(ModelFolderError, match="is damaged or truncated"):
        load(folder)


def test_cut_cnn_is_the_whole_one() -> None:
    """Its first layers, and the rest on their output, in the same precision."""
    path = SHIPPED_MODEL / GRAPHS["encoder"]
    parts = openvino_backend._split(path)
    assert parts is not None
    whole, first, rest = (
        openvino_backend._Graph(openvino_backend._compiled(model, "f32", 1))
        for model in (openvino_backend._read(path), *parts)
    )
    (side,) = {shape[2] for shape in first.output_shapes.values()}
    assert side == 320 / 4
    images = {"images": np.random.default_rng(0).integers(0, 256, (2, 320, 320, 3), np.uint8)}
    chained = openvino_backend._Chain(first, rest)(images)
    np.testing.assert_allclose(chained["annotations"], whole(images)["annotations"], atol=2e-4)


def test_graphs_without_a_cnn_are_not_cut() -> None:
    assert openvino_backend._split(SHIPPED_MODEL / GRAPHS["step"]) is None


@pytest.mark.parametrize(("has_bf16", "runtime"), [(True, "openvino"), (False, "onnxruntime")])
def test_openvino_is_chosen_where_it_is_faster(
    has_bf16: bool, runtime: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_backend, "computes_in_bf16", lambda: has_bf16)
    assert Captioner.load(exported, device="cpu").backend.runtime == runtime


def test_graphs_of_an_older_version_are_refused(exported: Path, model_config: ModelConfig) -> None:
    class Older(OnnxBackend):
        @classmethod
        def load_graph(cls, path: Path, *, threads: int) -> Any:
            graph = super().load_graph(path, threads=threads)
            graph.input_shapes = {
                name: shape for name, shape in graph.input_shapes.items() if name != "num_best"
            }
            return graph

    with pytest.raises(ModelFolderError, match="are those of an older captioner; export it again: captioner"):
        Older.load(exported, model_config, read_vocabulary(exported))


def test_broken_openvino_is_not_chosen(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is installed, but a library of the system is missing."""
    monkeypatch.setitem(sys.modules, "captioner.backends.openvino_backend", None)
    said: list[str] = []
    monkeypatch.setattr(load._logger, "warning", lambda text, *values: said.append(text % values))
    assert Captioner.load(exported, device="cpu").backend.runtime == "onnxruntime"
    (line,) = said
    assert line.startswith("OpenVINO is installed but does not work")
