from dataclasses import replace
from pathlib import Path

import pytest
import torch

from captioner.checkpoint.averaging import average_models
from captioner.checkpoint.weights import CaptioningCheckpoint, load_checkpoint, save_checkpoint
from captioner.cli.main import main
from captioner.errors import CaptionerError
from captioner.inference import Captioner
from captioner.model.captioning import make_captioning_model
from captioner.vocabulary import Vocabulary


def model_with(captioner: Captioner, seed: int) -> CaptioningCheckpoint:
    """A model of the same architecture with other weights."""
    model = make_captioning_model(captioner.config, vocab_size=len(captioner.vocabulary))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return CaptioningCheckpoint(model, captioner.config, captioner.vocabulary, {"seed": seed})


def test_weights_are_the_mean_by_shares(captioner: Captioner) -> None:
    one, two = (model_with(captioner, seed) for seed in (1, 2))
    first, second = (
        {name: value.clone() for name, value in given.model.state_dict().items()} for given in (one, two)
    )
    average = average_models([one, two], [0.25, 0.75])
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.25 * first[name] + 0.75 * second[name])
    assert average.metrics == {
        "average_of": [
            {"share": 0.25, "metrics": {"seed": 1}},
            {"share": 0.75, "metrics": {"seed": 2}},
        ]
    }


def test_average_with_the_whole_share_of_one_model_is_that_model(captioner: Captioner) -> None:
    one, two = (model_with(captioner, seed) for seed in (1, 2))
    expected = {name: value.clone() for name, value in two.model.state_dict().items()}
    average = average_models([one, two], [0.0, 1.0])
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_models_that_do_not_match_are_refused(captioner: Captioner) -> None:
    one, two = (model_with(captioner, seed) for seed in (1, 2))
    with pytest.raises(CaptionerError, match=r"shares must be at least 0 and sum to 1, not 0\.5, 0\.6"):
        average_models([one, two], [0.5, 0.6])
    with pytest.raises(
        CaptionerError, match="give at least two models and one share for each, not 2 models and 1 shares"
    ):
        average_models([one, two], [1.0])
    other = Vocabulary((*captioner.vocabulary.words[:-1], "else"))
    with pytest.raises(CaptionerError, match="model 1 has a different vocabulary from the last"):
        average_models([replace(one, vocabulary=other), two], [0.5, 0.5])
    config = replace(captioner.config, decoder=replace(captioner.config.decoder, gate="none"))
    with pytest.raises(CaptionerError, match="model 1 differs from the last in gate;"):
        average_models([replace(one, config=config), two], [0.5, 0.5])


def test_command_writes_a_model_folder_and_overwrites_none(
    captioner: Captioner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        save_checkpoint(tmp_path / str(seed), model_with(captioner, seed))
    arguments = ["average", str(tmp_path / "1"), str(tmp_path / "2"), "--shares", "0.5", "0.5"]
    for status in (0, 2):
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, "--out", str(tmp_path / "mean")])
        assert exit_.value.code == status
    assert "exists; choose a new folder" in capfd.readouterr().err
    weights = [
        load_checkpoint(tmp_path / name).model.decoder.output.weight.detach() for name in ("1", "2", "mean")
    ]
    torch.testing.assert_close(weights[2], (weights[0] + weights[1]) / 2, rtol=2e-3, atol=1e-4)  # as saved
