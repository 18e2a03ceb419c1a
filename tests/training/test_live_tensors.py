"""Counting the bytes of tensors."""

import torch
from torch.utils.checkpoint import checkpoint

from t2i.models.shapes import shapes_only
from t2i.training.live_tensors import LiveTensors

KB = torch.zeros(256)  # 1,024 bytes


def test_bytes_count_while_a_tensor_lives_and_views_are_free():
    with LiveTensors() as live:
        first = KB + 1
        view = first.view(16, 16).t()
        view.mul_(2)
        assert (live.now, live.peak) == (1024, 1024)
        second = first + 1
        del first
        assert live.now == 2048, "the view keeps it"
        del view, second
        assert (live.now, live.peak) == (0, 2048)


def layers(x, weights, recompute):
    for weight in weights:
        x = checkpoint(torch.matmul, x, weight, use_reentrant=False) if recompute else (x @ weight).relu()
    return x.sum()


def test_a_chain_keeps_what_its_backward_pass_needs():
    """N products of [n, n]: each keeps its input, and relu its output, which is the next input."""
    n, depth = 32, 8
    x, *weights = (torch.zeros(n, n, requires_grad=i > 0) for i in range(depth + 1))
    with LiveTensors() as live:
        loss = layers(x, weights, recompute=False)
        assert live.now == depth * 4 * n * n + 4
        loss.backward()
        del loss
    assert live.now == depth * 4 * n * n, "the gradients"


def test_tensors_without_contents_count_the_same():
    peaks = []
    with shapes_only() as mode:
        for made in (torch.zeros(64, 64), mode.from_tensor(torch.zeros(64, 64))):
            weight = torch.nn.Parameter(made)
            with LiveTensors() as live:
                layers(made, [weight] * 4, recompute=True).backward()
            peaks.append((live.now, live.peak))
    assert peaks[0] == peaks[1]
