"""The validation battery: fixed held-out images × fixed timesteps × fixed noise, the same in every run.

The error is unweighted, so that runs with different losses, learning rates and prediction types can be compared. The
headline is the geometric mean over the timesteps of the mean error: going from epsilon to v or x0 multiplies each
timestep's error by a constant, so the ratio of two runs' headlines is the same in all three spaces.
"""

import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from t2i.data.latent_cache import Encoded
from t2i.diffusion.process import Diffusion
from t2i.distributed.processes import assigned
from t2i.evaluation.metrics import snr_bins
from t2i.models.model import Model
from t2i.optim.ema import WeightAverage
from t2i.rng import generator

FORWARD_LATENTS = 64 * 16 * 16  # latent pixels per forward pass; fixed, so that no training setting changes a bit


@dataclass(frozen=True)
class Battery:
    """N images × K timesteps, determined by `seed` and the held-out split alone."""

    x0: list[Tensor]  # N times [C, h, w]: the mean of the posterior
    text: dict[str, Tensor]  # [N, ...]
    t: np.ndarray  # [K], ascending
    seed: int
    hash: str

    def noise(self, cells: np.ndarray) -> Tensor:
        """The noise of some cells (image · K + timestep) whose images have one size, [B, C, h, w]."""
        shape, k = self.x0[cells[0] // len(self.t)].shape, len(self.t)
        draws = [generator(self.seed, "battery", cell // k, cell % k) for cell in cells]
        return torch.from_numpy(np.stack([draw.standard_normal(shape, dtype=np.float32) for draw in draws]))

    @torch.no_grad()
    def errors(self, model: Model, diffusion: Diffusion, accelerator: Accelerator) -> np.ndarray:
        """Mean squared epsilon error of each image at each timestep, [N, K] in float64.

        The processes divide whole batches among themselves, so that their number does not change a bit.
        """
        device, parts = accelerator.device, []
        for cells in assigned(self._batches(), accelerator):
            items, t = cells // len(self.t), torch.from_numpy(self.t[cells % len(self.t)])
            x0 = torch.stack([self.x0[item] for item in items]).to(device)
            noised = diffusion.add_noise(x0, self.noise(cells).to(device), t.to(device))
            text = {name: tensor[items].to(device) for name, tensor in self.text.items()}
            prediction = model.denoise(noised.x, noised.time, text)
            error = (prediction.cpu().double() - noised.target.cpu().double()).square().flatten(1).mean(1)
            to_epsilon = (diffusion.snr * diffusion.x0_scale)[t]
            parts.append((cells, (error * to_epsilon).numpy()))
        errors = np.empty(len(self.x0) * len(self.t))
        for cells, part in gather_object(parts):
            errors[cells] = part
        return errors.reshape(len(self.x0), len(self.t))

    def _batches(self) -> list[np.ndarray]:
        """All cells, in batches whose images have one size."""
        batches, shapes = [], np.array([x0.shape for x0 in self.x0])
        for shape in np.unique(shapes, axis=0):
            items = np.flatnonzero((shapes == shape).all(1))
            cells = (items[:, None] * len(self.t) + np.arange(len(self.t))).ravel()
            batch = max(1, FORWARD_LATENTS // (shape[1] * shape[2]))
            batches += [cells[start : start + batch] for start in range(0, len(cells), batch)]
        return batches


def make_battery(
    encoded: Encoded, weights: np.ndarray, diffusion: Diffusion, seed: int, items: int, timesteps: int
) -> Battery:
    """A battery of at most `items` held-out images and `timesteps` stratified timesteps.

    The images are spread evenly by weight over the split, so that they are of the same kinds as the training images.
    """
    positions = (np.arange(items) + 0.5) / items * weights.sum()
    chosen = np.unique(np.searchsorted(np.cumsum(weights), positions)).tolist()
    x0 = [torch.from_numpy(encoded.moments([item])[0][0].copy()) for item in chosen]
    t = ((np.arange(timesteps) + 0.5) * len(diffusion) / timesteps).astype(np.int64)
    t = t[diffusion.snr.numpy()[t] > 0]
    digest = hashlib.sha256(repr((encoded.images_key, chosen, t.tolist(), seed)).encode())
    digest.update(diffusion.snr.numpy()[t].tobytes())
    text = encoded.text(chosen) | {"time_ids": encoded.framing(chosen)}
    return Battery(x0, text, t, seed, digest.hexdigest()[:32])


def summary(errors: np.ndarray, diffusion: Diffusion, t: np.ndarray) -> dict[str, float]:
    """Metrics of a battery's epsilon errors, [N, K]: the headline, the plain means, and one mean per SNR bin.

    Bin 0 is the noisiest; a bin holds neighbouring timesteps of the battery.
    """
    per_timestep = errors.mean(0)
    x0_per_timestep = per_timestep / diffusion.snr.numpy()[t]
    alpha, sigma = diffusion.alpha.numpy()[t], diffusion.sigma.numpy()[t]
    v_per_timestep = x0_per_timestep * ((alpha**2 + sigma**2) / sigma) ** 2
    return {
        "loss": float(np.exp(np.log(per_timestep).mean())),
        "eps_mse": float(per_timestep.mean()),
        "v_mse": float(v_per_timestep.mean()),
        "x0_mse": float(x0_per_timestep.mean()),
        **{f"snr_bin_{i}/eps": float(per_timestep[places].mean()) for i, places in enumerate(snr_bins(len(t)))},
    }


def evaluate(
    battery: Battery, model: Model, diffusion: Diffusion, ema: WeightAverage, accelerator: Accelerator
) -> tuple[dict[str, float], dict]:
    """Metrics as val/... (raw weights) and val/ema/..., and the errors [N, K] they are computed from, by prefix."""
    metrics, errors = {}, {}
    for prefix, weights in ema.variants().items():
        with weights, evaluating(model.denoiser):
            errors[prefix] = battery.errors(model, diffusion, accelerator)
        means = summary(errors[prefix], diffusion, battery.t)
        metrics |= {f"val/{prefix}{name}": value for name, value in means.items()}
    return metrics, errors


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Within, the module is in evaluation mode, without dropout."""
    module.eval()
    try:
        yield
    finally:
        module.train()
