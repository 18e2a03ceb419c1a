"""examples/ runs, and draws what it says."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import toy

    torch.manual_seed(0)
    return toy


def distance(points, others):
    """From each point to the nearest of the others, [N]."""
    return torch.cdist(points.flatten(1), others.flatten(1)).min(1).values


def test_samples_lie_near_the_spiral_and_all_along_it(toy):
    diffusion, data = toy.process(), toy.spiral(1000)
    samples = toy.sample(toy.train(diffusion, steps=600), diffusion, 1000)
    near = (distance(samples, data) < 0.25).float().mean()
    by_chance = (distance(2 * torch.randn_like(samples), data) < 0.25).float().mean()
    assert by_chance < 0.5 < 0.8 < near
    assert (distance(data, samples) < 0.25).float().mean() > 0.95


@pytest.mark.slow
def test_the_example_draws_a_picture(tmp_path):
    subprocess.run([sys.executable, EXAMPLES / "toy.py"], cwd=tmp_path, check=True)
    assert np.asarray(Image.open(tmp_path / "toy.png").convert("L")).std() > 10
