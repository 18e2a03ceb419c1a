"""A stand-in for a denoiser that knows the image and the noise, and answers with the prediction that t2i trains."""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from t2i.diffusion.process import Diffusion


class Oracle:
    """Takes the place of a denoiser's forward: in a stock pipeline's sampling loop, and under `Model.denoise`.

    It knows nothing of a family's layout, sign or unit of time: it learns what `Model.denoise` does to the input and to
    the output by passing numbered elements through it.
    """

    def __init__(self, model: Any, diffusion: Diffusion, x0: Tensor, text: dict[str, Tensor]):
        self.model, self.diffusion, self.x0, self.text = model, diffusion, x0, text
        self.denoiser = model.denoiser
        self.signature = inspect.signature(type(self.denoiser).forward)
        self.scheduler: Any = None
        self.noise: Tensor | None = None
        self.rounding = 1e-4  # of the time that the pipeline gives
        self.differences: list[str] = []  # of what the pipeline and what t2i gives to the denoiser
        self.steps = 0

    @contextmanager
    def answering(self, forward: Any) -> Iterator[None]:
        self.denoiser.forward = forward
        try:
            yield
        finally:
            del self.denoiser.forward

    def bound(self, args: tuple, kwargs: dict) -> dict[str, Any]:
        given = dict(self.signature.bind(self.denoiser, *args, **kwargs).arguments)
        return {name: value for name, value in given.items() if name not in ("self", "return_dict")}

    def denoised(self, x: Tensor, time: Tensor, output: Tensor) -> tuple[dict[str, Any], Tensor]:
        """What `Model.denoise` gives to the denoiser, and what it makes of an output of these elements."""
        seen = {}

        def forward(*args: Any, **kwargs: Any) -> Any:
            seen.update(self.bound(args, kwargs))
            return self.answer(seen, output)

        with self.answering(forward):
            prediction = self.model.denoise(x, time, self.text)
        return seen, prediction

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One step of the pipeline."""
        given = self.bound(args, kwargs)
        packed = stacked(first(given))
        numbered = torch.arange(1, self.x0.numel() + 1.0).view_as(self.x0)
        outputs = torch.arange(1.0, 1.0 + 2 * self.x0.numel())  # PixArt's has twice the channels
        forward = self.denoiser.forward
        seen, places = self.denoised(numbered, torch.ones(len(self.x0)), outputs)
        self.denoiser.forward = forward
        latents = torch.empty(self.x0.numel())
        latents[stacked(first(seen)).flatten().long() - 1] = packed.flatten()
        latents = latents.view_as(self.x0)

        alpha, sigma, time = self.levels()
        if self.noise is None:
            self.noise = (latents - alpha * self.x0) / sigma
        seen, _ = self.denoised(alpha * self.x0 + sigma * self.noise, time.expand(len(self.x0)), outputs)
        self.denoiser.forward = forward
        self.compare(given, seen)
        self.steps += 1
        target = self.diffusion.target(self.x0, self.noise, alpha, sigma)
        raw = torch.zeros(outputs.numel())
        raw[places.flatten().abs().long() - 1] = (target * places.sign()).flatten()
        output = self.answer(given, raw)
        return output if kwargs.get("return_dict", True) else (output.sample,)

    def answer(self, given: dict[str, Any], output: Tensor) -> Transformer2DModelOutput:
        """`output`, of which the leading elements are used, in the form that the denoiser answers in."""
        latents, config = first(given), self.denoiser.config
        shape = list(stacked(latents).shape)
        if config.get("out_channels") == 2 * config.in_channels:
            shape[1] *= 2
        numbers = output[: math.prod(shape)].view(shape)
        return Transformer2DModelOutput(sample=list(numbers) if isinstance(latents, list) else numbers)

    def levels(self) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and t2i's time at the scheduler's step."""
        t = self.scheduler.timesteps[self.steps]
        if self.diffusion.prediction_type == "flow_prediction":
            sigma = self.scheduler.sigmas[self.steps]
            return 1 - sigma, sigma, sigma * self.scheduler.config.num_train_timesteps
        alpha, sigma = (table.float()[t.long()] for table in (self.diffusion.alpha, self.diffusion.sigma))
        return alpha, sigma, self.diffusion.time[t.long()]

    def compare(self, given: dict[str, Any], seen: dict[str, Any]) -> None:
        for name in given.keys() | seen.keys():
            theirs, ours = given.get(name), seen.get(name)
            atol = self.rounding if name == "timestep" else 1e-4
            if not same(theirs, ours, atol):
                self.differences.append(f"step {self.steps}: {name}: {theirs} in the pipeline, {ours} in t2i")


def first(given: dict[str, Any]) -> Any:
    return next(iter(given.values()))


def stacked(value: Any) -> Tensor:
    return torch.stack(list(value)) if isinstance(value, list) else value


def same(theirs: Any, ours: Any, atol: float) -> bool:
    if isinstance(theirs, Tensor) and isinstance(ours, Tensor):
        theirs, ours = theirs.float(), ours.float()
        theirs = theirs.expand_as(ours) if theirs.ndim == 0 else theirs
        return theirs.shape == ours.shape and torch.allclose(theirs, ours, rtol=1e-4, atol=atol)
    if isinstance(theirs, list) and isinstance(ours, list):
        return len(theirs) == len(ours) and all(same(*pair, atol) for pair in zip(theirs, ours, strict=True))
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return all(same(theirs.get(key), ours.get(key), atol) for key in theirs | ours)
    return (theirs or None) == (ours or None)
