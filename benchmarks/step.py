"""What the loop costs: the step of a real run against the bare forward, backward and optimizer step.

    python benchmarks/step.py [overrides of t2i.train]

Both train the same denoiser on batches of the same size. The real step includes drawing, reading the cache, the loss
and its metrics, clipping, EMA, the learning-rate schedule and the log; the bare one predicts a fixed batch. They take
turns, a few steps each, so that a noisy machine disturbs both alike; the medians of the turns are compared.
"""

import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path

import hydra
import torch

from t2i.experiment import assemble
from t2i.journal import journal
from t2i.plan import settle
from t2i.runs import Run
from t2i.train import CONF
from t2i.training import Observers, train

STEPS_PER_TURN, TURNS = 5, 15


def bare(parts):
    """A function that trains a copy of the denoiser for some steps, with nothing around it."""
    denoiser = copy.deepcopy(parts.accelerator.unwrap_model(parts.model.denoiser))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4, fused=True)
    batch = parts.examples.__getitems__(list(range(parts.schedule.micro_batch_size))).to(parts.accelerator.device)

    def steps(number):
        for _ in range(number):
            with parts.accelerator.autocast():
                prediction = denoiser(batch.x0, batch.t, **batch.text).sample
            torch.nn.functional.mse_loss(prediction.float(), batch.noise).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def main(overrides):
    fixed = ["tracker=none", "validate_every=0", "sample_every=0", "save_every=0", f"log_every={STEPS_PER_TURN}"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=[*overrides, *fixed, f"steps={STEPS_PER_TURN * (TURNS + 1)}"])
    cfg.micro_batch_size = cfg.batch_size  # one forward pass a step, on both sides
    plan = settle(cfg)
    parts, _, facts = assemble(cfg, plan)
    bare_steps = bare(parts)
    seconds = {"t2i": [], "bare": []}

    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), cfg)
        run.begin()
        with journal(run, plan.tracker, None, [], cfg.steps) as records:
            clock = time.perf_counter()

            def log(step, metrics):
                nonlocal clock
                records.log(step, metrics)
                seconds["t2i"].append((time.perf_counter() - clock) / STEPS_PER_TURN)
                clock = time.perf_counter()
                bare_steps(STEPS_PER_TURN)
                seconds["bare"].append((time.perf_counter() - clock) / STEPS_PER_TURN)
                clock = time.perf_counter()

            train(**vars(parts), observers=Observers(None, None, log), run=run)

    turns = [(loop, alone) for loop, alone in zip(seconds["t2i"], seconds["bare"], strict=True)][
        1:
    ]  # the first warms up
    ratios = [loop / alone for loop, alone in turns]
    print(
        f"{facts['parameters'] / 1e6:.1f} M parameters, batch {cfg.batch_size}, {facts['precision']}, {facts['device']}"
    )
    print(f"bare step   {statistics.median(alone for _, alone in turns) * 1000:8.1f} ms")
    print(f"t2i's step  {statistics.median(loop for loop, _ in turns) * 1000:8.1f} ms")
    print(
        f"ratio       {statistics.median(ratios):8.3f}  ({min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} turns)"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
