"""Backend torch: on a GPU, or for models that were not exported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from captioner.checkpoint.weights import load_checkpoint
from captioner.config import Device
from captioner.decoding.step_model import StepResult
from captioner.errors import CaptionerError
from captioner.images.prefetch import available_cores
from captioner.model.captioning import CaptioningModel
from captioner.model.decoder import Decoder, DecoderState, Memory
from captioner.model.encoder import Encoder


@dataclass(frozen=True)
class DecoderSearchState:
    """The decoder's memory of the pictures still searched, and the state of each hypothesis."""

    memory: Memory
    state: DecoderState

    def select(
        self, pictures: Int[np.ndarray, " kept"], parents: Int[np.ndarray, "kept beam"]
    ) -> "DecoderSearchState":
        memory = self.memory
        if len(pictures) < len(memory.mean):
            memory = memory.select(torch.from_numpy(pictures).to(memory.mean.device))
        index = torch.from_numpy(pictures)[:, None], torch.from_numpy(parents)
        return DecoderSearchState(memory, self.state.select(index))


class TorchDecoder:
    """A torch decoder as a `captioner.decoding.search.StepModel`."""

    def __init__(self, decoder: Decoder[Any], cell_mask: Bool[Tensor, "batch cells"] | None = None) -> None:
        self.decoder, self.cell_mask = decoder, cell_mask

    @torch.inference_mode()
    def start(
        self, annotations: Float[Tensor, "pictures cells annotation"], num_hypotheses: int
    ) -> DecoderSearchState:
        memory = self.decoder.prepare_memory(annotations, self.cell_mask)
        return DecoderSearchState(memory, self.decoder.initial_state(memory, num_hypotheses))

    @torch.inference_mode()
    def step(
        self,
        tokens: Int[np.ndarray, "pictures beam"],
        state: DecoderSearchState,
        *,
        num_best: int | None,
        asked: Int[np.ndarray, "pictures beam asked"],
    ) -> StepResult[DecoderSearchState]:
        device = state.memory.mean.device
        output = self.decoder.step(torch.tensor(tokens, device=device), state.state, state.memory)
        log_probs = self.decoder.logits(output.readout).log_softmax(dim=-1)
        of_asked = log_probs.gather(2, torch.tensor(asked, device=device))
        if num_best is None:
            words = torch.arange(log_probs.shape[2]).expand(log_probs.shape)
        else:
            log_probs, words = log_probs.topk(min(num_best, log_probs.shape[2]), dim=2)
        return StepResult(
            words=words.cpu().numpy(),
            log_probs=log_probs.cpu().numpy(),
            asked=of_asked.cpu().numpy(),
            alphas=output.alphas.cpu().numpy(),
            state=DecoderSearchState(state.memory, output.state),
        )


class TorchBackend(TorchDecoder):
    """A torch model as a `captioner.backends.load.Backend`.

    On a GPU a batch is large because a step of the search takes about as long for many pictures as for few.
    """

    max_concurrent_batches = 1  # torch has its own threads, and a GPU one queue

    def __init__(self, model: CaptioningModel, device: torch.device | str = "cpu") -> None:
        super().__init__(model.decoder)
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self.batch_size = 8 if self.device.type == "cpu" else 128

    @classmethod
    def load(cls, folder: Path, *, device: Device, threads: int | None) -> "TorchBackend":
        """Load a model folder.

        Raises:
            captioner.errors.ModelFolderError: the folder is not a complete and valid model.
            CaptionerError: there is no such device.
        """
        limit_threads(threads)
        return cls(load_checkpoint(folder).model, choose_device(device))

    @torch.inference_mode()
    def encode(
        self, images: UInt8[np.ndarray, "pictures size size 3"]
    ) -> Float[Tensor, "pictures cells annotation"]:
        return annotate(self.model.encoder, torch.tensor(images, device=self.device))


def annotate(
    encoder: Encoder, images: UInt8[Tensor, "pictures size size 3"]
) -> Float[Tensor, "pictures cells annotation"]:
    """Annotations of pictures on the encoder's device: on a CPU one by one, because more would not fit its
    caches."""
    parts = images.split(1 if images.device.type == "cpu" else len(images))
    return torch.cat([encoder.annotate(part) for part in parts])


def limit_threads(threads: int | None = None) -> None:
    """Let torch use so many threads, by default no more than the container's CPU limit, which it ignores."""
    torch.set_num_threads(threads or min(torch.get_num_threads(), available_cores()))


def choose_device(name: Device) -> torch.device:
    """The device of that name; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        CaptionerError: there is no such device.
    """
    is_available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if is_available[device])
    if not is_available[name]:
        raise CaptionerError(f"torch finds no {name} device on this machine; use --device auto")
    return torch.device(name)
