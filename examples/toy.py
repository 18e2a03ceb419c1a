"""Diffusion on a two-dimensional spiral: t2i's maths as a library, without Hydra. Draws toy.png, in less than a minute.

python examples/toy.py
"""

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from t2i.diffusion.losses import MinSNR
from t2i.diffusion.process import Diffusion
from t2i.diffusion.residuals import Squared
from t2i.diffusion.timesteps import Uniform

T = 100  # timesteps


def spiral(count: int) -> Tensor:
    """Points on a spiral of one and a half turns, as images of two channels and one pixel, [count, 2, 1, 1]."""
    radius = torch.rand(count).sqrt()
    points = radius * torch.stack([(3 * math.pi * radius).cos(), (3 * math.pi * radius).sin()])
    return 2 * points.T[:, :, None, None]


def process() -> Diffusion:
    """The cosine schedule (Nichol & Dhariwal 2021), predicting v."""
    angle = math.pi / 2 * (torch.arange(T).double() + 0.5) / T
    return Diffusion(angle.cos(), angle.sin(), torch.arange(T), "v_prediction")


class MLP(nn.Module):
    """Predicts v from sines and cosines of a noised point and its timestep."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(27, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 2),
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        inputs = torch.cat([x.flatten(1), time[:, None] / T], dim=1)
        waves = (inputs[:, :, None] * torch.tensor([1.0, 2.0, 4.0, 8.0])).flatten(1)
        return self.layers(torch.cat([inputs, waves.sin(), waves.cos()], dim=1))[:, :, None, None]


def train(diffusion: Diffusion, steps: int) -> MLP:
    model, loss = MLP(), MinSNR(snr_gamma=5.0, normalize=True, error=Squared())
    loss.prepare(diffusion, Uniform().probabilities(T))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x0 = spiral(512)
        noised = diffusion.add_noise(x0, torch.randn_like(x0), torch.randint(T, (len(x0),)))
        loss(model(noised.x, noised.time), noised).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model


@torch.no_grad()
def sample(model: MLP, diffusion: Diffusion, count: int) -> Tensor:
    """DDIM (Song et al. 2021): estimate x0 and the noise, and mix them again for the timestep before."""
    x = torch.randn(count, 2, 1, 1)
    alpha, sigma = diffusion.alpha.tolist(), diffusion.sigma.tolist()
    for t in reversed(range(T)):
        v = model(x, torch.full((count,), t))
        x0, noise = alpha[t] * x - sigma[t] * v, sigma[t] * x + alpha[t] * v
        x = alpha[t - 1] * x0 + sigma[t - 1] * noise if t > 0 else x0
    return x


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a network as small as this gains nothing from more
    diffusion = process()
    clouds = {"data": spiral(2000), "samples": sample(train(diffusion, steps=4000), diffusion, 2000)}
    figure = Figure(figsize=(8, 4), layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, 2, sharex=True, sharey=True), clouds.items(), strict=True):
        axes.scatter(*points.flatten(1).T, s=3)
        axes.set(title=title, aspect="equal")
    figure.savefig("toy.png", dpi=120)


if __name__ == "__main__":
    main()
