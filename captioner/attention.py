"""Where to look: annotations and the hidden state to a distribution over cells and a context vector."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class AdditiveAttention(nn.Module):
    """Additive soft attention (Bahdanau et al. 2015; Xu et al. 2015, eq. 4 to 6 and 13).

        e_ti = v . tanh(W a_i + U h_{t-1})      alpha_t = softmax(e_t)      z_t = sum_i alpha_ti a_i

    The tanh is around the sum: were it v . (tanh(W a_i) + tanh(U h)), the hidden state would cancel in
    the softmax and every word would get the same map.
    """

    def __init__(self, *, annotation_dim: int, hidden_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(annotation_dim, attention_dim)
        self.query = nn.Linear(hidden_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)
        # Annotations have unit variance (see Decoder) and hidden units are below one. Spread this widely,
        # the sums leave the linear part of tanh, where the hidden state would cancel in the softmax too,
        # and the maps begin to differ from word to word early in training.
        nn.init.normal_(self.key.weight, std=annotation_dim**-0.5)
        nn.init.zeros_(self.key.bias)
        nn.init.normal_(self.query.weight, std=2 * hidden_dim**-0.5)
        nn.init.normal_(self.score.weight, std=attention_dim**-0.5)

    def keys(
        self, annotations: Float[Tensor, "batch cells annotation"]
    ) -> Float[Tensor, "batch cells attention"]:
        """The projection W a_i, which does not change from word to word or caption to caption."""
        return self.key(annotations)

    def forward(
        self,
        annotations: Float[Tensor, "batch cells annotation"],
        keys: Float[Tensor, "batch cells attention"],
        hidden: Float[Tensor, "batch captions hidden"],
    ) -> tuple[Float[Tensor, "batch captions annotation"], Float[Tensor, "batch captions cells"]]:
        """Context z and weights alpha, for each of the captions or hypotheses of each picture."""
        query = self.query(hidden)
        energy = self.score(torch.tanh(keys[:, None] + query[:, :, None])).squeeze(-1)
        alpha = energy.float().softmax(dim=-1)
        context = alpha.to(annotations.dtype) @ annotations
        return context, alpha
