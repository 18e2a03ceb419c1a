"""examples/ runs, and draws what it says."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TOY = Path(__file__).resolve().parent.parent / "examples" / "toy.py"


def distance(points, others):
    """From each point to the nearest of the others, [N]."""
    return torch.cdist(points.flatten(1), others.flatten(1)).min(1).values


@pytest.mark.parametrize("steps", ["400", pytest.param("4000", marks=pytest.mark.slow)])
def test_samples_lie_near_the_spiral_and_all_along_it(steps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy.py", steps])
    toy = runpy.run_path(str(TOY))
    data, samples = toy["data"], toy["samples"]
    near = (distance(samples, data) < 0.25).float().mean()
    by_chance = (distance(2 * torch.randn_like(samples), data) < 0.25).float().mean()
    assert by_chance < 0.5 < 0.8 < near
    assert (distance(data, samples) < 0.25).float().mean() > 0.95
    assert np.asarray(Image.open("toy.png").convert("L")).std() > 10
