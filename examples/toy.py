"""Diffusion on a two-dimensional spiral, without Hydra: t2i's maths as a library. Draws toy.png in less than a minute.

python examples/toy.py
"""

import math
import sys

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from t2i.diffusion.losses import MinSNR
from t2i.diffusion.process import Diffusion
from t2i.diffusion.residuals import Squared
from t2i.diffusion.timesteps import Uniform

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
torch.manual_seed(0)
torch.set_num_threads(1)  # a network as small as this gains nothing from more

T = 100  # timesteps of the cosine schedule (Nichol & Dhariwal 2021)
angle = math.pi / 2 * (torch.arange(T).double() + 0.5) / T
diffusion = Diffusion(angle.cos(), angle.sin(), torch.arange(T), "v_prediction")
loss = MinSNR(snr_gamma=5.0, normalize=True, error=Squared())
loss.prepare(diffusion, Uniform().probabilities(T))
network = nn.Sequential(
    *(nn.Linear(27, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))
)


def spiral(count: int) -> Tensor:
    """Points on a spiral of one and a half turns, as images of two channels and one pixel, [count, 2, 1, 1]."""
    radius = torch.rand(count).sqrt()
    return 2 * (radius * torch.stack([(3 * math.pi * radius).cos(), (3 * math.pi * radius).sin()])).T[:, :, None, None]


def predict(x: Tensor, time: Tensor) -> Tensor:
    """v, from sines and cosines of the noised points and their timesteps."""
    inputs = torch.cat([x.flatten(1), time[:, None] / T], dim=1)
    waves = (inputs[:, :, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])).flatten(1)
    return network(torch.cat([inputs, waves.sin(), waves.cos()], dim=1))[:, :, None, None]


optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for _ in range(steps):
    x0 = spiral(512)
    noised = diffusion.add_noise(x0, torch.randn_like(x0), torch.randint(T, (len(x0),)))
    loss(predict(noised.x, noised.time), noised).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    lr_scheduler.step()

data, samples = spiral(2000), torch.randn(2000, 2, 1, 1)
with torch.no_grad():  # DDIM (Song et al. 2021): estimate x0 and noise, and mix them for the timestep before
    for t in reversed(range(T)):
        v, alpha, sigma = predict(samples, torch.full((2000,), t)), diffusion.alpha[t].item(), diffusion.sigma[t].item()
        x0, noise = alpha * samples - sigma * v, sigma * samples + alpha * v
        samples = diffusion.alpha[t - 1].item() * x0 + diffusion.sigma[t - 1].item() * noise if t else x0

figure = Figure(figsize=(8, 4), layout="constrained")
axes = figure.subplots(1, 2, sharex=True, sharey=True, subplot_kw={"aspect": "equal"})
for panel, title, points in zip(axes, ("data", "samples"), (data, samples), strict=True):
    panel.scatter(*points.flatten(1).T, s=3)
    panel.set_title(title)
figure.savefig("toy.png", dpi=120)
