from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from captioner.checkpoint.weights import CaptioningCheckpoint
from captioner.errors import CaptionerError
from captioner.inference import Captioner
from captioner.model.decoder import DecoderOutput
from captioner.model.lstm import LSTMDecoder
from captioner.records import CaptionedImage
from captioner.training import distillation
from captioner.training.distillation import (
    attention_divergence,
    distil,
    second_moments,
    words_divergence,
)
from tests.conftest import make_captions_differ, noise_picture, torch_model


@pytest.fixture
def records(tmp_path: Path) -> list[CaptionedImage]:
    found = []
    for number in range(8):
        noise_picture(number).save(tmp_path / f"{number}.png")
        source, captions = tmp_path / f"{number}.png", ("a red dog runs", "a blue cat sits")
        found.append(CaptionedImage(image_id=str(number), source=source, captions=captions, split="train"))
    return found


def checkpoint_of(captioner: Captioner) -> CaptioningCheckpoint:
    return CaptioningCheckpoint(
        torch_model(captioner), captioner.config, captioner.vocabulary, {"dev": {"cider": 1.0}}
    )


def test_reduced_model_learns_to_predict_what_the_full_one_predicts(
    captioner: Captioner, records: list[CaptionedImage]
) -> None:
    full = checkpoint_of(captioner)
    make_captions_differ(full.model.decoder)
    before = {name: value.clone() for name, value in full.model.decoder.state_dict().items()}
    at_first = distil(full, captioner, records, rank=3, epochs=1, learning_rate=1e-2).metrics["divergence"]
    reduced = distil(full, captioner, records, rank=3, epochs=40, learning_rate=1e-2)
    assert reduced.metrics["divergence"] < 0.7 * at_first
    assert reduced.config.decoder.rank == reduced.model.decoder.config.rank == 3
    assert reduced.metrics["reduced_from"] == {"dev": {"cider": 1.0}}
    for name, value in full.model.decoder.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(CaptionerError, match="only an LSTM of full rank can be reduced"):
        distil(reduced, captioner, records, rank=2)


def test_each_picture_keeps_its_own_captions_in_every_batch(
    captioner: Captioner, records: list[CaptionedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "_BATCH_SIZE", 3)
    words = captioner.vocabulary.words[4:]
    own = [replace(record, captions=(f"{words[at % len(words)]} dog",)) for at, record in enumerate(records)]
    _, tokens, lengths = distillation._captions_of(captioner, own, seed=0)
    for record, rows, row_lengths in zip(own, tokens.tolist(), lengths.tolist(), strict=True):
        given = [row[: length + 1] for row, length in zip(rows, row_lengths, strict=True)]
        assert captioner.vocabulary.encode(record.captions[0]) in given


def test_learning_rate_rises_and_falls_also_without_a_bar(
    captioner: Captioner, records: list[CaptionedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, step = [], torch.optim.AdamW.step

    def noted(optimizer: torch.optim.AdamW) -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    distil(checkpoint_of(captioner), captioner, records, rank=3, epochs=20, learning_rate=1e-2)
    assert len(rates) == 20
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] < 1e-3


def test_second_moments_are_those_of_the_inputs(decoder: LSTMDecoder) -> None:
    """Of the output layer: its inputs are what its pseudo-inverse gives for the logits."""
    torch.manual_seed(0)
    annotations, tokens = torch.randn(3, 9, 10), torch.tensor([[[2, 5, 6, 3]]]).repeat(3, 2, 1)
    lengths = torch.full((3, 2), 3)
    decoder.output = nn.Linear(12, 20)
    found = second_moments(decoder, iter([(annotations, tokens, lengths)]))
    logits = decoder(annotations, tokens, lengths).logits.detach().double()
    inputs = (logits - decoder.output.bias.double()) @ torch.linalg.pinv(decoder.output.weight.double()).T
    torch.testing.assert_close(found["output"], inputs.T @ inputs, rtol=1e-4, atol=1e-4)
    assert found["lstm"].shape == (12 + 10 + 16, 12 + 10 + 16)


def test_divergences_equal_a_hand_computation() -> None:
    def output(probabilities: list[float], alphas: list[float]) -> DecoderOutput:
        return DecoderOutput(
            logits=torch.tensor([probabilities]).log(),
            alphas=torch.tensor([[[alphas, [0.0, 0.0]]]]),
            word_mask=torch.tensor([[[True, False]]]),
        )

    wanted, given = output([0.5, 0.5], [0.9, 0.1]), output([0.25, 0.75], [0.5, 0.5])
    words = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    attention = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    assert float(words_divergence(wanted, given)) == pytest.approx(words, abs=1e-6)
    assert float(attention_divergence(wanted, given)) == pytest.approx(attention, abs=1e-6)
    assert float(words_divergence(wanted, wanted)) == pytest.approx(0, abs=1e-6)
