"""The torch decoder as a step of the search: `captioner.search` is plain arrays, this is the bridge."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from captioner.config import DecodingConfig
from captioner.decoder import Decoder, DecoderState, Memory
from captioner.search import Hypothesis, beam_search


@dataclass(frozen=True)
class DecoderSearchState:
    """The decoder's memory for the pictures still searched, and the state of each hypothesis."""

    memory: Memory
    state: DecoderState

    def select(
        self, pictures: Int[np.ndarray, " kept"], parents: Int[np.ndarray, "kept beam"]
    ) -> "DecoderSearchState":
        memory = self.memory
        if len(pictures) < len(memory.keys):
            memory = memory.select(torch.from_numpy(pictures).to(memory.keys.device))
        rows = torch.from_numpy(pictures)[:, None], torch.from_numpy(parents)
        return DecoderSearchState(memory, DecoderState(self.state.hidden[rows], self.state.cell[rows]))


@torch.inference_mode()
def search_captions(
    decoder: Decoder, annotations: Float[Tensor, "batch cells annotation"], config: DecodingConfig
) -> list[list[Hypothesis]]:
    """Hypotheses for each picture, best first (see `captioner.search.beam_search`)."""
    memory = decoder.remember(annotations)
    start = DecoderSearchState(memory, decoder.initial_state(memory, config.beam_size))

    def step(
        tokens: Int[np.ndarray, "pictures beam"], state: DecoderSearchState
    ) -> tuple[np.ndarray, np.ndarray, DecoderSearchState]:
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(annotations.device)
        output = decoder.step(ids, state.state, state.memory)
        log_probs = decoder.logits(output.readout).log_softmax(dim=-1)
        next_state = DecoderSearchState(state.memory, output.state)
        return log_probs.cpu().numpy(), output.alpha.cpu().numpy(), next_state

    return beam_search(step, start, num_pictures=len(annotations), config=config)
