"""Every loss, error, noise schedule and distribution of timesteps trains the tiny model and leaves one that draws."""

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from t2i.config import CONF

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
