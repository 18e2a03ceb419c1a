"""`t2i check --memory`, which says what a run needs in memory."""

import shutil

import pytest
from huggingface_hub.utils import filter_repo_objects

from t2i import check
from t2i.config.model_size import BUNDLED
from t2i.models import loading, pipeline_parts


def told(capsys, *arguments):
    return check.main(["--memory", *arguments]), capsys.readouterr().out


@pytest.mark.slow
def test_each_job_has_a_line_and_nothing_is_left(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs = ("-m", "model=tiny_flow", "ema=standard,none", "max_grad_norm=1,-1", "precision=fp32")
    code, output = told(capsys, *jobs)
    assert code == 2
    lines = output.splitlines()
    assert sum("fp32 " in line for line in lines) == 2
    assert sum("max_grad_norm=-1: " in line for line in lines) == 2
    assert sum(line.startswith("Encoders, which are gone before training: ") for line in lines) == 1
    assert not list(tmp_path.iterdir())


FILES = [
    *("model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/merges.txt"),
    *("tokenizer/spiece.model", "tokenizer/chat_template.jinja", "transformer/diffusion_pytorch_model.index.json"),
]
WEIGHTS = [
    *("flux1-dev.safetensors", "unet/diffusion_pytorch_model.bin", "v1-5-pruned.ckpt", "vae/model.onnx", "teaser.png"),
    *("transformer/diffusion_pytorch_model-00001-of-00003.safetensors", "text_encoder/model.fp16.safetensors"),
]


@pytest.mark.slow
def test_no_weights_are_fetched_from_the_hub(tmp_path, monkeypatch, capsys):
    """Of a repository that nobody has on this machine."""

    def fetched(repository, revision, allow_patterns):
        assert (repository, revision) == ("somebody/small", None)
        assert [*filter_repo_objects(FILES + WEIGHTS, allow_patterns=allow_patterns)] == FILES
        return shutil.copytree(BUNDLED["tiny"], tmp_path / "got", ignore=shutil.ignore_patterns("*.safetensors"))

    def index(path, revision=None, subfolder=None, **_):
        kind = diffusers.StableDiffusionPipeline if subfolder is None else diffusers.DDIMScheduler
        return original[kind](BUNDLED["tiny"], **({"subfolder": subfolder} if subfolder else {}))

    import diffusers

    original = {kind: kind.load_config for kind in (diffusers.StableDiffusionPipeline, diffusers.DDIMScheduler)}
    for kind in original:
        monkeypatch.setattr(kind, "load_config", index)
    monkeypatch.setattr(loading, "check_reachable", lambda *_: None)
    monkeypatch.setattr(pipeline_parts, "snapshot_download", fetched)
    code, output = told(capsys, "model.path=somebody/small", "gradient_checkpointing=true")
    assert code == 0, output
