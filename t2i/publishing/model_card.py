"""The model card of a finished run: what was trained on which data, the result, and the command that reproduces it."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from t2i.config import ConfigError
from t2i.config.keys import belongs
from t2i.hub import is_repository
from t2i.models.loading_errors import naming_model
from t2i.models.lora_files import PEFT
from t2i.models.lora_settings import AVERAGED
from t2i.models.model_folder import check_folder, check_index
from t2i.models.new_tokens import FOLDER, words_in
from t2i.publishing.card_code import use_adapter, use_base, use_pipeline, use_words
from t2i.runs.changes import FREE_KEYS
from t2i.runs.config_file import read_config
from t2i.runs.files import atomic_write, read_json, replacing
from t2i.runs.folder import INFO, Run
from t2i.runs.links import refuse_links, refuse_links_out
from t2i.runs.text import one_line, printable, printable_lines

VALIDATED = ["val/loss", "val/ema/loss", "val/train_loss", "val/ema/train_loss"]
CODE = (
    *(".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".ps1", ".bat", ".exe", ".js"),
    *(".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib"),
)


def write_card(folder: Path, repo: str, license: str | None) -> None:
    """Write README.md and its images to the run's model/, for the repository `repo` (OWNER/NAME).

    The run may be a stranger's: ConfigError if its folder has links where the card is written or what is published
    lies, or if its files do not hold what those of a finished run do.
    """
    model, samples = folder / "model", folder / "samples" / "progress.png"
    refuse_links(model, samples)
    refuse_links_out(folder, samples)
    refuse_code(model)
    cfg = OmegaConf.create(read_config(folder))
    run = Run(folder, cfg)
    has_curves = draw_curves(run.metrics(), model / "curves.png")
    if has_samples := samples.is_file():
        with replacing(model / "samples.png") as file:
            shutil.copyfile(samples, file)
    try:
        text = card(run, cfg, repo, license, has_curves, has_samples)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, OmegaConfBaseException) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{folder / INFO} or config.yaml does not hold what the card says of a finished run "
            f"({type(error).__name__}: {one_line(error)}); restore the files from a copy"
        ) from error
    atomic_write(model / "README.md", printable_lines(text) + "\n")


def refuse_code(model: Path) -> None:
    """Refuse to publish what executes code where the model is loaded, which no export holds."""
    for file in sorted(model.rglob("*")):
        if file.suffix.lower() in CODE:
            raise ConfigError(printable(f"{file} is code or a pickle, which no export of a run holds; remove it"))
    if (model / "model_index.json").is_file():
        index = read_json(model / "model_index.json", "restore the file from a copy")
        check_index(model, index)
        with naming_model(model, "published"):
            check_folder(model, model, index)


def card(run: Run, cfg: DictConfig, repo: str, license: str | None, has_curves: bool, has_samples: bool) -> str:
    """The text of the card. Nothing in it that the run's files say becomes code, or markup of its own."""
    model = run.folder / "model"
    words = words_in(model / FOLDER)
    is_adapter = (model / AVERAGED).is_file() or bool(words)
    scheduler = read_json(model / "scheduler" / "scheduler_config.json", "restore the file from a copy")
    if not isinstance(scheduler["_class_name"], str) or not scheduler["_class_name"].isidentifier():
        raise ValueError(f"the scheduler's class is {scheduler['_class_name']}")
    rows = [f"| {name} | {plain(value)} |" for name, value in facts(run, cfg, scheduler, is_adapter).items()]
    parts = [
        f"---\n{metadata(cfg, license, is_adapter)}\n---",
        f"# {repo.rpartition('/')[2]}",
        "\n".join(["| | |", "|---|---|", *rows]),
    ]
    if has_curves:
        parts.append("![Training loss and validation loss](curves.png)")
    if has_samples:
        parts.append("![Samples of the same prompts and seeds during training](samples.png)")
    if is_adapter:
        networks = sorted(folder.name for folder in (model / PEFT).glob("*") if folder.name.isidentifier())
        files = [AVERAGED] if (model / AVERAGED).is_file() else []
        use = use_adapter(cfg.model.path, repo, scheduler["_class_name"], use_base(cfg.model), networks, files)
        use += "".join(f"\n{line}" for line in use_words(repo, words))
    else:
        use = use_pipeline(repo, absent_parts(model))
    arguments = ", ".join(['"a prompt"', *sampled_as(cfg)])
    use = f"{use}\nimage = pipeline({arguments}).images[0]"
    parts.append(f"## Use\n\n{fenced(use, 'python')}")
    if overrides := run.info.get("overrides"):
        parts.append(f"## Reproduce\n\n{fenced(command(overrides))}")
    return "\n\n".join(parts)


def plain(text: str) -> str:
    """Text in a cell of a table: Markdown and HTML in it are shown, not obeyed."""
    return re.sub(r"([\\`|<\[])", r"\\\1", printable(text))


def fenced(code: str, language: str = "") -> str:
    """A block of code, between more backticks than the code holds."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{code}\n{fence}"


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
        **({"autoencoder": str(cfg.model.vae)} if cfg.model.get("vae") else {}),
        **({"merged into the base": ", ".join(cfg.model.adapters)} if cfg.model.get("adapters") else {}),
        "trained": f"{described(cfg.adapter)}: {trained:.1f} of {parameters:.1f} M parameters"
        if is_adapter
        else f"all {parameters:.1f} M parameters of the denoiser",
        "data": f"{data}, {cfg.dataset.resolution} pixels: {images}",
        "steps": f"{_steps(info, cfg.steps)}, with {cfg.batch_size} images each; "
        f"{cfg.caption_dropout:.0%} of captions dropped",
        "optimizer": f"{described(cfg.optimizer)}; max_grad_norm {cfg.max_grad_norm}",
        "learning-rate schedule": described(cfg.lr_scheduler),
        "noise schedule": f"{scheduler['_class_name']}; predicts {predicted}",
        "loss": described(cfg.loss),
        "weight averaging": described(cfg.ema),
        "seed": str(cfg.seed),
        "precision": info["precision"],
        **{
            f"{key} (of images that it was trained on)" if "train_" in key else key: f"{info['final'][key]:.5f}"
            for key in VALIDATED
            if key in info["final"]
        },
        "code": ", ".join([f"revision {info['code_revision']}", *packages] if info["code_revision"] else packages),
    }


def _steps(info: dict[str, Any], steps: int) -> str:
    """How many steps were taken."""
    if not (stopped := info.get("early_stop")):
        return str(steps)
    why = f"stopped early by {stopped.get('metric')}, the best was step {stopped.get('best_step')}"
    return f"{stopped.get('step')} of {steps} ({why})"


def described(component: DictConfig) -> str:
    """The component's name and settings: `MinSNR (snr_gamma 5.0, normalize False)`."""
    values = {key: value for key, value in component.items() if not str(key).startswith("_") and value is not None}
    plain = ", ".join(f"{key} {value}" for key, value in values.items() if not isinstance(value, DictConfig))
    name = component._target_.rpartition(".")[2]
    return f"{name} ({plain})" if plain else name


def absent_parts(model: Path) -> list[str]:
    """The parts that the exported pipeline was saved without, and that Diffusers asks for."""
    index = read_json(model / "model_index.json", "restore the file from a copy")
    return [
        name
        for name, part in index.items()
        if part == [None, None] and re.fullmatch(r"(text_encoder|tokenizer)\w*", name)
    ]


def sampled_as(cfg: DictConfig) -> list[str]:
    """Arguments with which the pipeline draws as it was trained; its own default may be another."""
    tokens = cfg.model.get("max_sequence_length")
    return [f"max_sequence_length={tokens}"] if isinstance(tokens, int) else []


def command(overrides: list[str]) -> str:
    """The command that was typed, without settings that do not change the result."""
    kept = [text for text in overrides if not belongs(text.lstrip("+~").partition("=")[0], FREE_KEYS)]
    return shlex.join(["python", "-m", "t2i.train", *kept])


def draw_curves(metrics: list[dict[str, float]], file: Path) -> bool:
    """Draw training loss and validation loss against the step; returns whether there was anything to draw."""
    from matplotlib.figure import Figure

    lines = {key: [(line["step"], line[key]) for line in metrics if key in line] for key in ("train/loss", *VALIDATED)}
    if not any(lines.values()):
        return False
    figure = Figure(figsize=(8, 3), layout="constrained")
    validated = [key for key in VALIDATED if lines[key]] or VALIDATED[:2]
    for axes, keys in zip(figure.subplots(1, 2), (["train/loss"], validated), strict=True):
        for key in keys:
            axes.plot(*zip(*lines[key], strict=True) if lines[key] else ([], []), marker=".", label=key)
        axes.set(xlabel="step", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=120)
    return True
