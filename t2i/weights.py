"""Compare loss weightings before training: `t2i weights loss=minsnr,debiased scheduler=v_prediction`.

It takes the overrides of `t2i train`. Lists (a,b) name what to compare, in every combination. A setting that only some
of the listed options have (loss.snr_gamma=1,5) applies to those. It loads neither a model nor images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from t2i.cli.arguments import Parser, overrides_of, overrides_parser
from t2i.cli.failing import run
from t2i.config import ConfigError
from t2i.config.checks import check_types
from t2i.config.compose import SEARCH_PATH, compose, expand
from t2i.evaluation.metrics import snr_bins
from t2i.runs.files import replacing
from t2i.runs.full_disk import naming
from t2i.runs.text import printable


@dataclass(frozen=True)
class Weights:
    """How much each of T timesteps counts in training."""

    label: str
    scale: np.ndarray  # [T]: weight of the prediction's error
    probabilities: np.ndarray  # [T]: how often each timestep is drawn
    snr: np.ndarray  # [T]

    @property
    def mean(self) -> float:
        return float(self.probabilities @ self.scale)

    def fractions(self) -> dict[str, float]:
        """SNR range of each bin of neighbouring timesteps, noisiest first -> its fraction of the total weight."""
        fractions = {}
        for t in snr_bins(len(self.snr)):
            name = f"SNR {_short(self.snr[t].min())}–{_short(self.snr[t].max())}"
            fractions[name] = float(self.probabilities[t] @ self.scale[t]) / self.mean
        return fractions

    def rows(self) -> dict[str, str]:
        """The rows of the table: name -> value."""
        return {
            "mean weight": f"{self.mean:.3g}",
            "zero-weight steps": str((self.scale == 0).sum()),
            "smallest weight": f"{self.scale.min():.3g}",
            "largest weight": f"{self.scale.max():.3g}",
            **{name: f"{part:.1%}" if part >= 0.001 else f"{part:.2%}" for name, part in self.fractions().items()},
        }


def compare(arguments: list[str]) -> list[Weights]:
    """The weights of every combination of the listed overrides, once under each label."""
    weights: dict[str, Weights] = {}
    used = set()
    combinations = expand(arguments)
    for combination in combinations:
        options = [text for override, text in combination if not _is_setting(override)]
        defaults = compose(options)
        fitting = [
            (override, text)
            for override, text in combination
            if not _is_setting(override) or _has(defaults, override.key_or_group)
        ]
        used |= {override.key_or_group for override, _ in fitting}
        label = _label(options, [text for override, text in fitting if override.is_sweep_override()])
        if label not in weights:
            cfg = compose([text for _, text in fitting])
            check_types(cfg, defaults)
            weights[label] = examine(cfg, label)
    for override, _ in combinations[0]:
        if override.key_or_group not in used:
            raise ConfigError(f"{override.key_or_group}: none of the chosen options has this setting")
    return list(weights.values())


def examine(cfg: DictConfig, label: str) -> Weights:
    """The weights of one configuration."""
    from t2i.experiment.plan import make_plan

    plan = make_plan(cfg)
    diffusion = plan.diffusion
    scale = plan.loss.scale(diffusion.snr, diffusion.x0_scale)
    return Weights(label, scale.numpy(), plan.timesteps.probabilities(len(diffusion)), diffusion.snr.numpy())


def show(weights: Sequence[Weights]) -> None:
    """Print a column for each combination; another noise schedule, or a full line, begins a new table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    longest_word = max(len(word) for column in weights for word in column.label.split())
    fit = max(1, (console.width - 22) // (max(longest_word, 8) + 3))
    schedules: dict[tuple[str, ...], list[Weights]] = {}
    for column in weights:
        schedules.setdefault(tuple(column.fractions()), []).append(column)
    for group in schedules.values():
        for columns in (group[i : i + fit] for i in range(0, len(group), fit)):
            table = Table("", *(escape(column.label) for column in columns))
            table.columns[0].no_wrap = True
            for heading in table.columns[1:]:
                heading.justify = "right"
            rows = [column.rows() for column in columns]
            for name in rows[0]:
                table.add_row(name, *(row[name] for row in rows), end_section=name == "largest weight")
            console.print(table)
    console.print("SNR: fraction of the total weight in this range of signal-to-noise ratios")


def plot(weights: Sequence[Weights], file: Path) -> None:
    """Plot the weight of the prediction's error against the timestep."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, line in enumerate(weights):
        positive = np.where(line.scale > 0, line.scale, np.nan)
        axes.plot(positive, label=line.label, linestyle=("-", "--", "-.", ":")[i % 4])
    axes.set(yscale="log", xlabel="timestep (clean → noise)", ylabel="weight of the prediction's error")
    axes.grid(alpha=0.3)
    for text in axes.legend().get_texts():
        text.set_parse_math(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    with naming(file), replacing(file) as temporary:
        figure.savefig(temporary, dpi=120)


def parser() -> Parser:
    parser = overrides_parser("weights", __doc__, "loss=mse,p2 loss.normalize=true")
    parser.add_argument("--out", type=Path, default=Path("weights.png"), help="plot to write (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_intermixed_args(arguments)
    weights = compare(overrides_of(options))
    show(weights)
    plot(weights, options.out)
    print(options.out)


def _is_setting(override: Override) -> bool:
    """Whether it changes a setting inside a group, rather than choosing an option or adding something."""
    return "." in override.key_or_group and not override.is_add() and override.key_or_group != SEARCH_PATH


def _has(cfg: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    return isinstance(node, DictConfig) and name in list(node)


def _label(options: list[str], listed: list[str]) -> str:
    """The loss, then what else is compared, as it can be typed back."""
    loss = compose(options, return_hydra_config=True).hydra.runtime.choices.loss
    label = " ".join([loss, *(text.removeprefix("loss.") for text in listed if text != f"loss={loss}")])
    return printable(label)


def _short(snr: float) -> str:
    return f"{snr:.0f}" if snr >= 100 else f"{snr:.2g}"


if __name__ == "__main__":
    run(main)
