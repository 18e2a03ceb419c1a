"""One arm of a comparison, in a process of its own: `python benchmarks/arms.py KIND OVERRIDE...` (see speed.py).

KIND is `reference` (benchmarks/reference.py), `t2i` (the real loop), `bare` (forward, backward, clipping and
optimizer step of the denoiser that t2i would train, on one batch, and nothing else) or `encode` (fills the cache, and
ends). The overrides are those of `t2i.train`; the reference does as they say, too. On stdin come lines of two or three
numbers, the steps to warm up with, those to time, and those after them in which a GPU is watched; each is answered on
stdout by a line of JSON.
"""

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from omegaconf import DictConfig

from t2i.config.compose import compose
from t2i.hardware.gpus import driver_version
from t2i.optim.numerics import numerics
from t2i.training.recorder import peak_memory_gb

FOREVER = 10**6  # steps; the other end of the pipe decides


class Done(Exception):
    """Nothing more is asked for."""


class Turns:
    """Steps that are asked for at one end of a pipe, done and timed at the other."""

    def __init__(self, requests: TextIO, answers: TextIO):
        self.requests, self.answers = requests, answers
        self.steps = self._steps()

    def begin(self, **facts: Any) -> None:
        """Say what is about to be timed, and wait until it is asked for."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # encoding does not count
        self.answer(machine=machine(), **facts)
        self.step_done()

    def step_done(self, step: int = 0) -> bool:
        """To be called after every step: waits where a turn has ended. Never asks to stop; raises Done at the end."""
        try:
            next(self.steps)
        except StopIteration:
            raise Done from None
        return False

    def answer(self, **values: Any) -> None:
        print(json.dumps(values), file=self.answers, flush=True)

    def _steps(self) -> Iterator[None]:
        for line in self.requests:
            warmup, timed, watched = (*map(int, line.split()), 0)[:3]
            for _ in range(warmup):
                yield
            start = _now()
            for _ in range(timed):
                yield
            seconds, busy = (_now() - start) / timed, None
            if watched and torch.cuda.is_available():
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                    start = _now()
                    for _ in range(watched):
                        yield
                    took = _now() - start
                busy = busy_share(profile.events(), took)
            self.answer(seconds=seconds, peak_gb=peak_memory_gb(), busy=busy)


def busy_share(events: Iterable[Any], seconds: float) -> float:
    """The share of a time in which the GPU computes or copies: kernels that overlap count once."""
    spans = sorted((event.time_range.start, event.time_range.end) for event in events if _on_gpu(event))  # µs
    busy, until = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6 / seconds


def _on_gpu(event: Any) -> bool:
    return event.device_type == torch.autograd.DeviceType.CUDA


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    capabilities = torch.cpu.get_capabilities()
    names_of = {"avx2": "AVX2", "avx512_f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_tile": "AMX"}
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "driver": driver_version() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": [name for key, name in names_of.items() if capabilities.get(key)],
        "torch": torch.__version__,
    }


def assembled(cfg: DictConfig, folder: str):
    """The experiment as a run in `folder` would have it, and what run.json would say of it."""
    from t2i.config.checks import check
    from t2i.experiment.assembly import assemble, describe
    from t2i.experiment.plan import make_plan

    check(cfg, num_processes=1)
    experiment = assemble(cfg, make_plan(cfg), Path(folder))
    return experiment, describe(experiment)


def encode(cfg: DictConfig, turns: Turns) -> None:
    """Fill the cache."""
    with tempfile.TemporaryDirectory() as folder:
        assembled(cfg, folder)
    turns.begin()


def t2i(cfg: DictConfig, turns: Turns) -> None:
    """The real loop with its run folder and its records."""
    from t2i.experiment.run import schedule
    from t2i.runs.folder import Run
    from t2i.training.loop import Hooks, train
    from t2i.training.recorder import recording

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), cfg)
        run.begin()
        experiment, facts = assembled(cfg, folder)
        plan = experiment.plan
        with recording(run, plan.tracker, None, [], cfg.steps, -1) as recorder:
            turns.begin(precision=facts["precision"], attention=facts["attention"])
            train(
                take_step=experiment.take_step,
                lr_scheduler=experiment.optimization.lr_scheduler,
                examples=experiment.examples,
                schedule=schedule(cfg, 0, experiment.accelerator.device),
                hooks=Hooks(
                    meter=experiment.meter,
                    validate=never,
                    sample=never,
                    evaluate=never,
                    log=recorder.log,
                    snapshot=lambda step: None,
                    save=never,
                    should_stop=turns.step_done,
                    ends_early=lambda: False,
                ),
                accelerator=experiment.accelerator,
            )


def never(step: int) -> None:
    """A hook that the benchmark has switched off."""
    raise AssertionError("validation, samples and checkpoints are switched off")


def bare(cfg: DictConfig, turns: Turns) -> None:
    """What no loop can do without."""
    from t2i.training.step import clip_grad_norm

    with tempfile.TemporaryDirectory() as folder:
        experiment, facts = assembled(cfg, folder)
    accelerator, model = experiment.accelerator, experiment.model
    optimizer, weights = experiment.optimization.optimizer, list(experiment.optimization.trained.weights.values())
    batch = experiment.examples.__getitems__(list(range(cfg.batch_size))).to(accelerator.device)
    noised = experiment.plan.diffusion.add_noise(batch.x0, batch.noise, batch.t)
    del experiment
    turns.begin(precision=facts["precision"], attention=facts["attention"])
    while True:
        prediction = model.denoise(noised.x, noised.time, batch.text)
        accelerator.backward(torch.nn.functional.mse_loss(prediction.float(), noised.target))
        if cfg.max_grad_norm:
            clip_grad_norm(accelerator, weights, cfg.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        turns.step_done()


def reference(cfg: DictConfig, turns: Turns) -> None:
    """The loop of reference.py with the same settings, as far as it has them."""
    import reference as loop

    from t2i.models.loading import locate
    from t2i.optim.precision import MIXED_PRECISION, resolve_precision

    precision = resolve_precision(**cfg.precision).dtype
    settings = loop.Settings(
        pipeline=locate(cfg.model.path),
        images=Path(cfg.dataset.path) / "train",
        resolution=cfg.dataset.resolution,
        batch_size=cfg.batch_size,
        learning_rate=cfg.optimizer.lr,
        mixed_precision=MIXED_PRECISION[precision],
        gradient_checkpointing=cfg.gradient_checkpointing,
        random_crop=cfg.dataset.crop == "random",
        flip=cfg.dataset.flip,
        snr_gamma=cfg.loss.get("snr_gamma"),
        max_grad_norm=cfg.max_grad_norm,
        seed=cfg.seed,
    )
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    losses = loop.train(settings)
    turns.begin(precision=precision, attention="sdpa")
    with tempfile.TemporaryFile("w") as file:
        for step, loss in enumerate(losses, start=1):
            print(json.dumps({"step": step, "train/loss": loss}), file=file, flush=True)
            turns.step_done()


KINDS = {"reference": reference, "t2i": t2i, "bare": bare, "encode": encode}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    kind, *overrides = sys.argv[1:]
    turns = Turns(sys.stdin, answers)
    try:
        cfg = compose([*overrides, f"steps={FOREVER}"])
        with numerics(cfg.tf32, cfg.cudnn_benchmark, cfg.deterministic):
            KINDS[kind](cfg, turns)
    except Done:
        pass
    except Exception as error:
        turns.answer(problem=f"{type(error).__name__}: {str(error).splitlines()[0]}")
        raise


if __name__ == "__main__":
    main()
