"""The torch backend's use of the machine."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from captioner.backends import torch_backend
from captioner.backends.torch_backend import TorchBackend
from captioner.checkpoint.folder import SHIPPED_MODEL, read_vocabulary
from captioner.config import DecodingOptions
from captioner.decoding.generate import generate_captions
from captioner.vocabulary import END


@pytest.fixture(autouse=True)
def same_number_of_threads_afterwards() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("limit", "asked", "expected"), [(1, None, 1), (2, None, 2), (8, None, 3), (1, 2, 2)]
)
def test_threads_respect_the_limit_of_a_container(
    limit: int, asked: int | None, expected: int, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(3)  # what torch would take
    monkeypatch.setattr(torch_backend, "available_cores", lambda: limit)
    TorchBackend.load(model_folder, device="cpu", threads=asked)
    assert torch.get_num_threads() == expected


def test_no_vocabulary_is_copied_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3,902 words a search copies a few for each hypothesis: their ids and log-probabilities."""
    backend = TorchBackend.load(SHIPPED_MODEL, device="cpu", threads=None)
    vocab_size = len(read_vocabulary(SHIPPED_MODEL))
    crossed: list[int] = []
    copy = Tensor.cpu

    def counting(tensor: Tensor) -> Tensor:
        if tensor.ndim == 3:  # (pictures, beam, words); attention has heads too
            crossed.append(tensor.shape[2])
        return copy(tensor)

    images = np.random.default_rng(0).integers(0, 256, (2, 320, 320, 3), np.uint8)
    annotations = backend.encode(images)
    options = DecodingOptions(beam_size=3, max_words=8, no_repeat_ngram=2)
    monkeypatch.setattr(Tensor, "cpu", counting)
    found = generate_captions(backend, annotations, options, required=(END + 10,))
    assert all(END + 10 in hypothesis.tokens for hypotheses in found for hypothesis in hypotheses)
    assert crossed
    assert max(crossed) <= 2 * 3 + 2 + 3 + 8  # two per beam, required and END, never allowed, n-grams
    assert vocab_size > 3000
