"""Captioning speed compared with BLIP-base and a typical tutorial model.

    pip install transformers
    python benchmarks/peers.py --images train2017

From JPEGs to words, with a beam size of 3 and exactly 20 words per caption, on the same number of threads:

- BLIP-base (Li et al. 2022) in transformers, with random weights, all pictures in one batch;
- the architecture of most tutorials, with random weights: a ResNet-101 at 256 px, a grid of 14 x 14, and an
  LSTM of 512 units that projects the grid again for every word, one picture at a time;
- the model that ships with captioner, on OpenVINO and on onnxruntime.

Random weights are as fast as trained ones because the number of words is fixed. Measurements are interleaved
and repeated; the tables have their median, minimum and maximum.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor, nn
from torchvision.models import resnet101

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.report import report
from captioner.config import BackendName
from captioner.inference import Captioner

BEAM_SIZE = 3
NUM_WORDS = 20

Run = Callable[[list[Path]], object]


class TutorialCaptioner(nn.Module):
    """The architecture of tutorials on Xu et al. 2015, with the sizes that they use for COCO."""

    def __init__(self, *, vocab_size: int = 9490, dim: int = 512, channels: int = 2048) -> None:
        super().__init__()
        self.cnn = nn.Sequential(*list(resnet101(weights=None).children())[:-2], nn.AdaptiveAvgPool2d(14))
        self.key, self.query = nn.Linear(channels, dim), nn.Linear(dim, dim)
        self.score, self.gate = nn.Linear(dim, 1), nn.Linear(dim, channels)
        self.initial_hidden, self.initial_cell = nn.Linear(channels, dim), nn.Linear(channels, dim)
        self.embedding = nn.Embedding(vocab_size, dim)
        self.lstm = nn.LSTMCell(dim + channels, dim)
        self.output = nn.Linear(dim, vocab_size)

    @torch.inference_mode()
    def caption(self, path: Path) -> list[int]:
        """Beam search on one picture, whose grid is copied for each hypothesis."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((256, 256)), dtype=np.float32)
        grid = self.cnn(torch.from_numpy(pixels / 255).permute(2, 0, 1)[None])
        annotations = grid.flatten(2).transpose(1, 2).repeat(BEAM_SIZE, 1, 1)
        mean = annotations.mean(dim=1)
        hidden, cell = self.initial_hidden(mean), self.initial_cell(mean)
        words = torch.zeros(BEAM_SIZE, 1, dtype=torch.long)
        totals = torch.tensor([0.0] + [-torch.inf] * (BEAM_SIZE - 1))
        for _ in range(NUM_WORDS):
            log_probs, hidden, cell = self._step(words[:, -1], annotations, hidden, cell)
            totals, best = (totals[:, None] + log_probs).flatten().topk(BEAM_SIZE)
            parents = best // log_probs.shape[1]
            words = torch.cat([words[parents], best[:, None] % log_probs.shape[1]], dim=1)
            hidden, cell = hidden[parents], cell[parents]
        return words[0, 1:].tolist()

    def _step(
        self, words: Tensor, annotations: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        energies = self.score(torch.relu(self.key(annotations) + self.query(hidden)[:, None]))
        context = (energies.softmax(dim=1) * annotations).sum(dim=1)
        gated = torch.sigmoid(self.gate(hidden)) * context
        hidden, cell = self.lstm(torch.cat([self.embedding(words), gated], dim=1), (hidden, cell))
        return self.output(hidden).log_softmax(dim=1), hidden, cell


def tutorial() -> Run:
    torch.manual_seed(0)
    model = TutorialCaptioner().eval()

    def run(paths: list[Path]) -> list[list[int]]:
        return [model.caption(path) for path in paths]

    return run


def blip() -> Run:
    try:
        from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessorPil
    except ImportError:
        sys.exit("peers.py: BLIP needs transformers; install it with: pip install transformers")
    torch.manual_seed(0)
    model, prepare = BlipForConditionalGeneration(BlipConfig()).eval(), BlipImageProcessorPil()

    @torch.inference_mode()
    def run(paths: list[Path]) -> Tensor:
        images = [Image.open(path).convert("RGB") for path in paths]
        pixels = prepare(images, return_tensors="pt")["pixel_values"]
        words = model.generate(
            pixel_values=pixels, num_beams=BEAM_SIZE, min_new_tokens=NUM_WORDS, max_new_tokens=NUM_WORDS
        )
        assert isinstance(words, Tensor)
        assert words.shape[1] >= NUM_WORDS
        return words

    return run


def ours(backend: BackendName, threads: int) -> Run:
    captioner = Captioner.load(backend=backend, device="cpu", threads=threads)
    options = replace(
        captioner.config.decoding, beam_size=BEAM_SIZE, min_words=NUM_WORDS, max_words=NUM_WORDS
    )

    def run(paths: list[Path]) -> list[object]:
        captions = list(captioner.caption_files(paths, batch_size=16, options=options))
        assert all(len(caption.tokens) == NUM_WORDS for batch in captions for caption in batch)  # type: ignore[union-attr]
        return [*captions]

    return run


def main(
    *,
    images: Path,
    repeats: int = 3,
    threads: int = torch.get_num_threads(),
    json_out: Path | None = None,
) -> None:
    """Measure, and print two tables.

    Args:
        images: Folder of at least 8 JPEGs.
        repeats: Number of measurements.
        threads: CPU threads of each model.
        json_out: Also write all values to this file.
    """
    found = sorted(images.glob("*.jpg"))
    if len(found) < 8:
        sys.exit(f"peers.py: {images} contains fewer than 8 JPEGs")
    torch.set_num_threads(threads)
    # The numbers of pictures are such that each model takes about ten seconds on two cores.
    timed = {
        "BLIP-base": (blip(), found[:4]),
        "ResNet-101 and LSTM, one picture at a time": (tutorial(), found[:8]),
        "captioner, OpenVINO": (ours("openvino", threads), (found * 320)[:320]),
        "captioner, onnxruntime": (ours("onnx", threads), (found * 320)[:320]),
    }
    rates: dict[str, list[float]] = {name: [] for name in timed}
    for run, paths in timed.values():
        run(paths[:2])  # warm up
    for _ in range(repeats):
        for name, (run, paths) in timed.items():
            started = time.perf_counter()
            run(paths)
            rates[name].append(len(paths) / (time.perf_counter() - started))
    ratios = {
        f"{name} / {peer}": [mine / other for mine, other in zip(rates[name], rates[peer], strict=True)]
        for name in list(timed)[2:]
        for peer in list(timed)[:2]
    }
    report({"pictures per second": rates, "ratios": ratios}, json_out)


if __name__ == "__main__":
    tyro.cli(main)
