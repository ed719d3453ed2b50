"""Captions sampled from a decoder on its device, for self-critical training."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from captioner.decoding.search import BANNED_TOKENS
from captioner.model.decoder import Decoder
from captioner.vocabulary import END, PAD, START


@torch.no_grad()
def sample_captions(
    decoder: Decoder,
    annotations: Float[Tensor, "batch cells annotation"],
    *,
    num_captions: int,
    max_words: int,
) -> tuple[Int[Tensor, "batch captions tokens"], Int[Tensor, "batch captions"]]:
    """Draw captions from the model's own distribution.

    Gives their tokens and lengths as a `CaptionBatch` has them, the longest of each picture first. A
    caption that has not ended after `max_words` words is cut, without <end>. Unlike those of the search,
    a caption may end before its first word.
    """
    memory = decoder.prepare_memory(annotations)
    state = decoder.initial_state(memory, num_captions)
    steps = [torch.full((len(annotations), num_captions), START, device=annotations.device)]
    is_open = torch.ones_like(steps[0], dtype=torch.bool)
    lengths = torch.zeros_like(steps[0])
    for num_words in range(max_words + 1):
        output = decoder.step(steps[-1], state, memory)
        state = output.state
        probabilities = without_banned(decoder.logits(output.readout)).softmax(dim=-1)
        drawable = probabilities.flatten(0, 1).nan_to_num(1.0)  # what is not finite is for the loss to find
        drawn = drawable.multinomial(1).view_as(is_open)
        if num_words == max_words:
            is_open = is_open & (drawn == END)  # what goes on is cut here
        steps.append(torch.where(is_open, drawn, PAD))
        lengths += is_open
        is_open = is_open & (drawn != END)
        if not is_open.any():
            break
    lengths, order = lengths.sort(dim=1, descending=True)
    tokens = torch.stack(steps, dim=-1)
    return tokens.gather(1, order[..., None].expand_as(tokens)), lengths


def without_banned(logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    """Logits that leave no probability to the tokens that no caption may hold."""
    banned = torch.tensor(BANNED_TOKENS, device=logits.device)
    return logits.index_fill(-1, banned, -torch.inf)
