"""The validation battery: fixed held-out images × fixed noise levels × fixed noise, the same in every run.

The error is unweighted, so that runs with different losses, learning rates and prediction types can be compared, and
the noise levels are log-SNRs, so that those with different schedules can. The headline is the geometric mean over the
levels of the mean error: going from epsilon to v or x0 multiplies the error at each level by a constant, so the ratio
of two runs' headlines is the same in all three spaces.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from t2i.data.latent_cache import Encoded
from t2i.diffusion.process import Diffusion
from t2i.diffusion.residuals import mean_error
from t2i.distributed.processes import assigned
from t2i.evaluation.image_battery import spread
from t2i.evaluation.metrics import snr_bins
from t2i.evaluation.noise_levels import NoiseLevels, Origin
from t2i.hardware.uploads import upload, with_float64
from t2i.models.model import Model
from t2i.models.tokens import upload_text
from t2i.optim.ema import WeightAverage
from t2i.rng import generator

FORWARD_LATENTS = 64 * 16 * 16  # latent pixels per forward pass; fixed, so that no training setting changes a bit


@dataclass(frozen=True)
class Battery:
    """N images × K noise levels, determined by the settings of `validation`, the held-out split and the autoencoder."""

    x0: list[Tensor]  # N times [C, h, w]: the mean of the posterior
    text: dict[str, Tensor]  # [N, ...]
    levels: NoiseLevels
    seed: int
    facts: dict[str, Any]  # what run.json says of it
    shares: Sequence[Tensor] | None = (
        None  # N times [1, h, w]: what the errors count within each image; None: all alike
    )

    @property
    def hash(self) -> str:
        return self.facts["hash"]

    def noise(self, cells: np.ndarray) -> Tensor:
        """The noise of some cells (image · K + level) whose images have one size, [B, C, h, w]."""
        k = len(self.levels.values)
        shape = self.x0[cells[0] // k].shape
        draws = [generator(self.seed, "battery", cell // k, cell % k) for cell in cells]
        return torch.from_numpy(np.stack([draw.standard_normal(shape, dtype=np.float32) for draw in draws]))

    @torch.no_grad()
    def errors(self, model: Model, diffusion: Diffusion, accelerator: Accelerator) -> np.ndarray:
        """Mean squared epsilon error of each image at each level, [N, K] in float64.

        The processes divide whole batches among themselves, so that their number does not change a bit.
        """
        device, k = accelerator.device, len(self.levels.values)
        precise = with_float64(device)
        done, parts = list[np.ndarray](), list[Tensor]()
        for cells in assigned(self._batches(), accelerator):
            items, places = cells // k, cells % k
            x0 = upload(torch.stack([self.x0[item] for item in items]), device)
            noised = self.levels.add_noise(diffusion, x0, upload(self.noise(cells), device), places)
            text = upload_text({name: tensor[items] for name, tensor in self.text.items()}, device)
            prediction = model.denoise(noised.x, noised.time, text)
            squares = (prediction.to(precise).double() - noised.target.to(precise).double()).square()
            shares = None if self.shares is None else torch.stack([self.shares[item] for item in items])
            parts.append(mean_error(squares, None if shares is None else upload(shares, precise)))
            done.append(cells)
        mine = np.concatenate(done)
        mean = torch.cat(parts).cpu() * self.levels.to_epsilon(diffusion)[torch.from_numpy(mine % k)]
        errors = np.empty(len(self.x0) * k)
        for cells, part in gather_object([(mine, mean.numpy())]):
            errors[cells] = part
        return errors.reshape(len(self.x0), k)

    def _batches(self) -> list[np.ndarray]:
        """All cells, in batches whose images have one size."""
        batches, shapes, k = [], np.array([x0.shape for x0 in self.x0]), len(self.levels.values)
        for shape in np.unique(shapes, axis=0):
            items = np.flatnonzero((shapes == shape).all(1))
            cells = (items[:, None] * k + np.arange(k)).ravel()
            batch = max(1, FORWARD_LATENTS // (shape[-2] * shape[-1]))
            batches += [cells[start : start + batch] for start in range(0, len(cells), batch)]
        return batches


def make_battery(
    encoded: Encoded,
    weights: np.ndarray,
    diffusion: Diffusion,
    levels: NoiseLevels,
    seed: int,
    items: int,
    identity: dict[str, str],
) -> Battery:
    """A battery of at most `items` held-out images. identity: `images` and `autoencoder` of its `Origin`.

    The images are spread evenly by weight over the split, so that they are of the same kinds as the training images.
    """
    chosen = spread(weights, items)
    x0 = [torch.from_numpy(encoded.moments([item])[0][0].copy()) for item in chosen]
    text = encoded.text([*chosen]) | {"time_ids": encoded.framing(chosen)}
    origin = Origin(**identity, encodings=encoded.images_key, chosen=chosen, seed=seed)
    shares = [share[0] for item in chosen if (share := encoded.shares([item])) is not None]
    return Battery(x0, text, levels, seed, levels.describe(diffusion, origin), shares or None)


def summary(errors: np.ndarray, snr: np.ndarray, to_v: np.ndarray) -> dict[str, float]:
    """Metrics of a battery's epsilon errors, [N, K]: the headline, the plain means, and one mean per SNR bin.

    Bin 0 is the noisiest; a bin holds neighbouring levels of the battery. snr, to_v: of its levels, [K].
    """
    per_level = errors.mean(0)
    x0_per_level = per_level / snr
    return {
        "loss": float(np.exp(np.log(per_level).mean())),
        "eps_mse": float(per_level.mean()),
        "v_mse": float((x0_per_level * to_v).mean()),
        "x0_mse": float(x0_per_level.mean()),
        **{f"snr_bin_{i}/eps": float(per_level[places].mean()) for i, places in enumerate(snr_bins(len(snr)))},
    }


def evaluate(
    battery: Battery, model: Model, diffusion: Diffusion, ema: WeightAverage, accelerator: Accelerator, step: int
) -> tuple[dict[str, float], dict]:
    """Metrics as val/... (raw weights) and val/ema/..., and the errors [N, K] they are computed from, by prefix.

    Before the first step an average is that of equal weights, so they are measured once.
    """
    metrics, errors = {}, {}
    for prefix, weights in ema.variants().items():
        if step == 0 and errors:
            errors[prefix] = next(iter(errors.values()))
        else:
            with weights, evaluating(model.denoiser):
                errors[prefix] = battery.errors(model, diffusion, accelerator)
        means = summary(errors[prefix], battery.levels.snr(diffusion), battery.levels.to_v(diffusion))
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
