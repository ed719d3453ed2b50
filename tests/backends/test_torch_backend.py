"""The torch backend's use of the machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from captioner.backends import torch_backend
from captioner.backends.torch_backend import TorchBackend


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
