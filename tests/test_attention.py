import torch

from captioner.attention import AdditiveAttention


def make_attention() -> AdditiveAttention:
    torch.manual_seed(0)
    return AdditiveAttention(annotation_dim=6, hidden_dim=5, attention_dim=4)


def test_alpha_is_a_distribution_over_cells() -> None:
    attention, annotations, hidden = make_attention(), torch.randn(2, 9, 6), torch.randn(2, 3, 5)
    _, alpha = attention(annotations, attention.keys(annotations), hidden)
    assert alpha.shape == (2, 3, 9)
    assert (alpha >= 0).all()
    torch.testing.assert_close(alpha.sum(dim=-1), torch.ones(2, 3))


def test_alpha_depends_on_the_hidden_state() -> None:
    attention, annotations = make_attention(), torch.randn(1, 9, 6)
    hidden = torch.randn(1, 2, 5)
    _, alpha = attention(annotations, attention.keys(annotations), hidden)
    assert (alpha[0, 0] - alpha[0, 1]).abs().max() > 1e-3


def test_attention_is_the_paper_equation_written_out() -> None:
    attention, annotations, hidden = make_attention(), torch.randn(1, 4, 6), torch.randn(1, 1, 5)
    context, alpha = attention(annotations, attention.keys(annotations), hidden)
    w, b, u, v = attention.key.weight, attention.key.bias, attention.query.weight, attention.score.weight[0]
    energy = [v @ torch.tanh(w @ a + b + u @ hidden[0, 0]) for a in annotations[0]]
    by_hand = torch.stack(energy).exp() / torch.stack(energy).exp().sum()
    torch.testing.assert_close(alpha[0, 0], by_hand)
    torch.testing.assert_close(
        context[0, 0], sum(p * a for p, a in zip(by_hand, annotations[0], strict=True))
    )


def test_permuted_cells_give_permuted_alpha_and_the_same_context() -> None:
    attention, annotations, hidden = make_attention(), torch.randn(2, 9, 6), torch.randn(2, 3, 5)
    order = torch.randperm(9)
    context, alpha = attention(annotations, attention.keys(annotations), hidden)
    shuffled = annotations[:, order]
    context_2, alpha_2 = attention(shuffled, attention.keys(shuffled), hidden)
    torch.testing.assert_close(alpha_2, alpha[..., order])
    torch.testing.assert_close(context_2, context)
