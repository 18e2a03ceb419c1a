"""Every loss, error, noise schedule and distribution of timesteps trains the tiny model and leaves one that draws."""

from itertools import product

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from helpers.runs import compose

from t2i.comparison.grouping import compare
from t2i.comparison.results import read_results
from t2i.config import CONF
from t2i.evaluation.metrics import Metric
from t2i.experiment.plan import make_plan
from t2i.experiment.run import run

OPTIONS = [
    f"{group}={file.stem}"
    for group in ("loss", "error", "scheduler", "timesteps")
    for file in sorted((CONF / group).glob("*.yaml"))
]
PREDICTED = {
    "pretrained": "v_prediction",
    "v_prediction": "v_prediction",
    "zero_terminal_snr": "v_prediction",
    "flow_matching": "flow_prediction",
}
ENDS_IN_NOISE = ("scheduler=zero_terminal_snr",)  # where min(SNR, gamma) is 0


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_trains_and_draws(train, tmp_path, option):
    settings = (
        "model.path=tiny",
        "steps=5",
        "batch_size=4",
        "micro_batch_size=4",
        "validate_every=0",
        "sample_every=0",
    )
    run = train(tmp_path / "run", option, *settings)
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert all(np.isfinite(line[key]) for line in lines for key in line)
    assert run.info["weighting"]["zero_steps"] == (option in ENDS_IN_NOISE)

    group, name = option.split("=")
    if group == "scheduler":
        pipeline = StableDiffusionPipeline.from_pretrained(run.folder / "model")
        assert pipeline.scheduler.config.prediction_type == PREDICTED.get(name, "epsilon")
        image = pipeline("red apple", num_inference_steps=2, output_type="np").images[0]
        assert image.shape == (64, 64, 3)
        assert np.isfinite(image).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("common", "sweep"),
    [
        ([], {"scheduler": ["epsilon", "v_prediction", "flow_matching", "zero_terminal_snr"]}),
        (
            ["model=tiny_flow", "model.path=tiny_flow", "model.pretrained=false"],
            {"scheduler.shift": ["1", "3", "6"], "timesteps": ["uniform", "logit_normal"]},
        ),
    ],
)
def test_processes_and_times_are_compared_with_intervals(small, tmp_path, common, sweep):
    """As `t2i train -m scheduler=epsilon,v_prediction,flow_matching` and `t2i compare` do."""
    combinations = list(product(*sweep.values()))
    for values in combinations:
        typed = [*common, *(f"{key}={value}" for key, value in zip(sweep, values, strict=True))]
        cfg = compose(*small, *typed, "steps=2", "validate_every=2", "sample_every=0")
        choices = {key: value for key, value in zip(sweep, values, strict=True) if "." not in key}
        run(cfg, make_plan(cfg), tmp_path / "-".join(values), typed, choices)
    comparison = compare(read_results([tmp_path]))
    assert set(comparison.factors.by) == set(sweep)
    assert not comparison.left_out
    verdicts = comparison.verdicts(Metric.named("val/loss"))
    assert len(verdicts) == len(combinations) - 1
    for verdict in verdicts:
        assert -1 < verdict.total.low < verdict.total.estimate < verdict.total.high
