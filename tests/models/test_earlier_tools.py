"""What a run exports, opened with Diffusers of 2025 and Transformers 4, draws what the run's own libraries draw."""

import json
import os
import site
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import earlier_tools, layouts

from t2i.models import stable_diffusion, stable_diffusion_xl
from t2i.models.lora import LoRA, NoAdapter
from t2i.models.lora_files import KOHYA
from t2i.models.lora_settings import AVERAGED
from t2i.models.single_file import SINGLE

pytestmark = [pytest.mark.slow, pytest.mark.long]

OF_2025 = ["diffusers==0.35.2", "transformers==4.56.2", "huggingface_hub==0.35.3", "tokenizers==0.22.1"]
OF_2025 += ["peft==0.17.1", "accelerate==1.10.1", "requests"]
LOAD = {"sd15": stable_diffusion.load, "sd21": stable_diffusion.load, "sdxl": stable_diffusion_xl.load}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """The Python of an environment with packages of 2025, and the installed torch."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--no-deps", *OF_2025]
    if (done := subprocess.run(install, capture_output=True, text=True)).returncode:
        pytest.skip(f"PyPI can't be reached: {done.stderr[-200:]}")
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "zz_shared.pth").write_text(site.getsitepackages()[0])  # after its own
    return python


@pytest.fixture(scope="module")
def exported(layout, tmp_path_factory):
    """Whole pipelines, and LoRAs of denoiser and text encoders with alpha unlike rank, as runs export them."""

    def exported(name):
        folder = tmp_path_factory.mktemp("exported") / name
        scheduler = layouts.DDIMScheduler(**layouts.BETAS, clip_sample=False)
        NoAdapter(single_file=True).save(LOAD[name](str(layout(name))).pipeline(scheduler), folder / "base")
        lora = LoRA(
            **{"rank": 3, "alpha": 4.5, "dropout": 0.0, "init": "gaussian", "text_encoder": True, "formats": "kohya"},
            target_modules=["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "ff.net.2"],
            text_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
            rank_pattern={"to_k": 5},
            single_file=True,
        )
        model = LOAD[name](str(folder / "base"))
        adapted = lora.attach(model)
        torch.manual_seed(1)
        for weight in adapted.denoiser.parameters():
            if weight.requires_grad:
                weight.data.normal_(std=0.2)
        pipeline = adapted.pipeline(scheduler)
        lora.save(pipeline, folder / "lora")
        return folder, pipeline

    return exported


def image(pipeline):
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return pipeline("red apple", latents=noise, num_inference_steps=3, output_type="np").images


@pytest.mark.parametrize("name", LOAD)
def test_pipeline_lora_and_single_file_draw_the_same(earlier, exported, name, tmp_path):
    folder, pipeline = exported(name)
    kind, base = layouts.STOCK[name].__name__, str(folder / "base")
    given = {
        "base": {},
        "lora": {"lora": str(folder / "lora" / AVERAGED)},
        "kohya": {"lora": str(folder / "lora" / KOHYA)},
        "single": {"single_file": str(folder / "base" / SINGLE)},
        "merged": {"single_file": str(folder / "lora" / SINGLE)},
    }
    jobs = [[kind, base, what, str(tmp_path / f"{key}.npy")] for key, what in given.items()]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [earlier, earlier_tools.__file__, tmp_path / "jobs.json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "diffusers 0.35.2 transformers 4.56.2" in done.stdout
    assert "newly initialized" not in done.stderr

    theirs = {key: np.load(tmp_path / f"{key}.npy") for key in given}
    with_lora = image(pipeline)
    without = image(layouts.STOCK[name].from_pretrained(base))
    assert not np.allclose(with_lora, without, atol=1e-2)
    for key, expected in {"base": without, "single": without, "lora": with_lora, "kohya": with_lora}.items():
        assert np.allclose(theirs[key], expected, atol=1e-3), (key, np.abs(theirs[key] - expected).max())
    assert np.allclose(theirs["merged"], with_lora, atol=1e-3)
