"""Every loss, error, noise schedule and distribution of timesteps trains the tiny model and leaves one that draws."""

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from t2i.train import CONF

OPTIONS = [
    f"{group}={file.stem}"
    for group in ("loss", "error", "scheduler", "timesteps", "lr_scheduler", "ema")
    for file in sorted((CONF / group).glob("*.yaml"))
]
ENDS_IN_NOISE = ("scheduler=zero_terminal_snr", "scheduler=flow_matching")  # where min(SNR, gamma) is 0


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

    pipeline = StableDiffusionPipeline.from_pretrained(run.folder / "model")
    wanted = {"v_prediction": "v_prediction", "flow_matching": "flow_prediction", "zero_terminal_snr": "v_prediction"}
    group, name = option.split("=")
    if group == "scheduler":
        expected = wanted.get(name, "v_prediction" if name == "pretrained" else "epsilon")
        assert pipeline.scheduler.config.prediction_type == expected
    image = pipeline("red apple", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert np.isfinite(image).all()
