"""The model card of a finished run: what was trained on which data, the result, and the command that reproduces it."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from t2i.config.keys import belongs
from t2i.config.secrets import redact
from t2i.hub import is_repository
from t2i.models.lora import AVERAGED
from t2i.runs.config_file import read_config
from t2i.runs.folder import FREE_KEYS, Run


def write_card(folder: Path, repo: str, license: str | None) -> None:
    """Write README.md and its images to the run's model/, for the repository `repo` (OWNER/NAME)."""
    cfg = OmegaConf.create(read_config(folder))
    run, model = Run(folder, cfg), folder / "model"
    scheduler = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    is_adapter = (model / AVERAGED).is_file()
    rows = [f"| {name} | {value} |" for name, value in facts(run, cfg, scheduler, is_adapter).items()]
    parts = [
        f"---\n{metadata(cfg, license, is_adapter)}\n---",
        f"# {repo.rpartition('/')[2]}",
        "\n".join(["| | |", "|---|---|", *rows]),
    ]
    if draw_curves(run.metrics(), model / "curves.png"):
        parts.append("![Training loss and validation loss](curves.png)")
    if (samples := folder / "samples" / "progress.png").is_file():
        shutil.copyfile(samples, model / "samples.png")
        parts.append("![Samples of the same prompts and seeds during training](samples.png)")
    use = use_adapter(cfg.model.path, repo, scheduler["_class_name"]) if is_adapter else use_pipeline(repo)
    parts.append(f"## Use\n\n```python\n{use}\n```")
    if (overrides := folder / ".hydra" / "overrides.yaml").is_file():
        parts.append(f"## Reproduce\n\n```\n{command(list(map(str, OmegaConf.load(overrides))))}\n```")
    (model / "README.md").write_text(redact("\n\n".join(parts)) + "\n", encoding="utf-8")


def metadata(cfg: DictConfig, license: str | None, is_adapter: bool) -> str:
    """The YAML that the Hub reads. It names the base model and the data set only if they are on the Hub."""
    from huggingface_hub import ModelCardData

    base, data = cfg.model.path, cfg.dataset.get("path", "")
    return ModelCardData(
        license=license,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", "t2i", *(["lora"] if is_adapter else [])],
        base_model=base if is_repository(base) else None,
        base_model_relation=("adapter" if is_adapter else "finetune") if is_repository(base) else None,
        datasets=[data] if is_repository(data) else None,
    ).to_yaml()


def facts(run: Run, cfg: DictConfig, scheduler: dict[str, Any], is_adapter: bool) -> dict[str, str]:
    """The rows of the card's table."""
    info = run.info
    counts, trained, parameters = info["pictures"], info["trained_parameters"] / 1e6, info["parameters"] / 1e6
    data = cfg.dataset.get("path") or cfg.dataset._target_.rpartition(".")[2]
    images = f"{counts['train'] or 'streamed'} images, {counts['validation']} held out"
    packages = [f"{name} {version}" for name, version in info["packages"].items()]
    predicted = scheduler.get("prediction_type", "noise − x0" if "shift" in scheduler else "epsilon")
    return {
        "base model": cfg.model.path + ("" if cfg.model.pretrained else " (architecture only, trained from scratch)"),
        "trained": f"{described(cfg.adapter)}: {trained:.1f} of {parameters:.1f} M parameters"
        if is_adapter
        else f"all {parameters:.1f} M parameters of the denoiser",
        "data": f"{data}, {cfg.dataset.resolution} pixels: {images}",
        "steps": f"{cfg.steps}, with {cfg.batch_size} images each; {cfg.caption_dropout:.0%} of captions dropped",
        "optimizer": f"{described(cfg.optimizer)}; max_grad_norm {cfg.max_grad_norm}",
        "learning-rate schedule": described(cfg.lr_scheduler),
        "noise schedule": f"{scheduler['_class_name']}; predicts {predicted}",
        "loss": described(cfg.loss),
        "weight averaging": described(cfg.ema),
        "seed": str(cfg.seed),
        "precision": info["precision"],
        **{key: f"{info['final'][key]:.5f}" for key in ("val/loss", "val/ema/loss") if key in info["final"]},
        "code": ", ".join([f"revision {info['code_revision']}", *packages] if info["code_revision"] else packages),
    }


def described(component: DictConfig) -> str:
    """The component's name and settings: `MinSNR (snr_gamma 5.0, normalize False)`."""
    values = {key: value for key, value in component.items() if not str(key).startswith("_") and value is not None}
    plain = ", ".join(f"{key} {value}" for key, value in values.items() if not isinstance(value, DictConfig))
    name = component._target_.rpartition(".")[2]
    return f"{name} ({plain})" if plain else name


def use_pipeline(repo: str) -> str:
    return f"""from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{repo}")
image = pipeline("a prompt").images[0]"""


def use_adapter(base: str, repo: str, scheduler: str) -> str:
    return f"""from diffusers import DiffusionPipeline, {scheduler}

pipeline = DiffusionPipeline.from_pretrained("{base}")
pipeline.scheduler = {scheduler}.from_pretrained("{repo}", subfolder="scheduler")
pipeline.load_lora_weights("{repo}", weight_name="{AVERAGED}")
image = pipeline("a prompt").images[0]"""


def command(overrides: list[str]) -> str:
    """The command that was typed, without settings that do not change the result."""
    kept = [text for text in overrides if not belongs(text.lstrip("+~").partition("=")[0], FREE_KEYS)]
    return shlex.join(["python", "-m", "t2i.train", *kept])


def draw_curves(metrics: list[dict[str, float]], file: Path) -> bool:
    """Draw training loss and validation loss against the step; returns whether there was anything to draw."""
    from matplotlib.figure import Figure

    lines = {
        key: [(line["step"], line[key]) for line in metrics if key in line]
        for key in ("train/loss", "val/loss", "val/ema/loss")
    }
    if not any(lines.values()):
        return False
    figure = Figure(figsize=(8, 3), layout="constrained")
    for axes, keys in zip(figure.subplots(1, 2), (["train/loss"], ["val/loss", "val/ema/loss"]), strict=True):
        for key in keys:
            axes.plot(*zip(*lines[key], strict=True) if lines[key] else ([], []), marker=".", label=key)
        axes.set(xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, dpi=120)
    return True
