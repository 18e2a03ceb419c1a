"""Compare loss weightings before training: `python -m t2i.weights loss=minsnr,debiased scheduler=v_prediction`.

Takes the overrides of `t2i.train`, with lists (a,b) of what to compare, in every combination; a setting that only some
of the listed options have (loss.snr_gamma=1,5) applies to those. Loads neither weights nor images.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from t2i.config import ConfigError
from t2i.config.checks import check_types
from t2i.config.compose import compose, expand
from t2i.evaluation.metrics import snr_bins


@dataclass(frozen=True)
class Weights:
    """How much each of T timesteps counts in training."""

    label: str
    scale: np.ndarray  # [T]: weight of the prediction's error
    probabilities: np.ndarray  # [T]
    snr: np.ndarray  # [T]

    @property
    def mean(self) -> float:
        return float(self.probabilities @ self.scale)

    def shares(self) -> dict[str, float]:
        """SNR range of each bin of neighbouring timesteps, noisiest first -> its share of the total weight."""
        shares = {}
        for t in snr_bins(len(self.snr)):
            name = f"SNR {_short(self.snr[t].min())}–{_short(self.snr[t].max())}"
            shares[name] = float(self.probabilities[t] @ self.scale[t]) / self.mean
        return shares

    def rows(self) -> dict[str, str]:
        return {
            "mean weight": f"{self.mean:.3g}",
            "zero-weight steps": str((self.scale == 0).sum()),
            "smallest weight": f"{self.scale.min():.3g}",
            "largest weight": f"{self.scale.max():.3g}",
            **{name: f"{share:.1%}" if share >= 0.001 else f"{share:.2%}" for name, share in self.shares().items()},
        }


def compare(arguments: list[str]) -> list[Weights]:
    """The weights of every combination of the listed overrides."""
    found, used, overrides = {}, set(), []
    for combination in expand(arguments):
        overrides = [override for override, _ in combination]
        options = [text for override, text in combination if not _is_setting(override)]
        defaults = compose(options)
        fitting = [
            (override, text)
            for override, text in combination
            if not _is_setting(override) or _has(defaults, override.key_or_group)
        ]
        used |= {override.key_or_group for override, _ in fitting}
        label = _label(options, [text for override, text in fitting if override.is_sweep_override()])
        if label not in found:
            cfg = compose([text for _, text in fitting])
            check_types(cfg, defaults)
            found[label] = examine(cfg, label)
    for override in overrides:
        if override.key_or_group not in used:
            raise ConfigError(f"{override.key_or_group}: none of the chosen options has this setting")
    return list(found.values())


def examine(cfg: DictConfig, label: str) -> Weights:
    from t2i.plan import make_plan

    plan = make_plan(cfg)
    diffusion = plan.diffusion
    scale = plan.loss.scale(diffusion.snr, diffusion.x0_scale)
    return Weights(label, scale.numpy(), plan.timesteps.probabilities(len(diffusion)), diffusion.snr.numpy())


def show(weights: list[Weights]) -> None:
    """A column for each combination; a new table where the terminal is full, and for another noise schedule."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    widest = max(len(word) for each in weights for word in each.label.split())
    fit = max(1, (console.width - 22) // (max(widest, 8) + 3))
    schedules = {}
    for each in weights:
        schedules.setdefault(tuple(each.shares()), []).append(each)
    for group in schedules.values():
        for columns in (group[i : i + fit] for i in range(0, len(group), fit)):
            table = Table("", *(each.label for each in columns))
            table.columns[0].no_wrap = True
            for column in table.columns[1:]:
                column.justify = "right"
            rows = [each.rows() for each in columns]
            for name in rows[0]:
                table.add_row(name, *(row[name] for row in rows), end_section=name == "largest weight")
            console.print(table)
    console.print("SNR: share of all weight in this range of signal-to-noise ratios")


def plot(weights: list[Weights], file: Path) -> None:
    """The weight of the prediction's error against the timestep."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for i, each in enumerate(weights):
        positive = np.where(each.scale > 0, each.scale, np.nan)
        axes.plot(positive, label=each.label, linestyle=("-", "--", "-.", ":")[i % 4])
    axes.set(yscale="log", xlabel="timestep (clean → noise)", ylabel="weight of the prediction's error")
    axes.grid(alpha=0.3)
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m t2i.weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="for example loss=mse,p2 loss.normalize=true")
    parser.add_argument("--out", type=Path, default=Path("weights.png"), help="plot (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_intermixed_args(arguments)
    try:
        weights = compare(options.overrides)
        show(weights)
        plot(weights, options.out)
    except (HydraException, ValueError, OSError) as error:
        message = f"{error} {error.__cause__ or ''}" if isinstance(error, HydraException) else str(error)
        # Hydra goes on: where it searched, and the key once more.
        print("t2i:", *re.split("Config search path:|full_key:", message)[0].split(), file=sys.stderr)
        sys.exit(2)
    print(options.out)


def _is_setting(override) -> bool:
    """Whether it changes a setting inside a group, rather than choosing an option or adding something."""
    return "." in override.key_or_group and not override.is_add()


def _has(cfg: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    return isinstance(node, DictConfig) and name in list(node)


def _label(options: list[str], listed: list[str]) -> str:
    """The loss, then what else is compared, as it can be typed back."""
    loss = compose(options, return_hydra_config=True).hydra.runtime.choices.loss
    return " ".join([loss, *(text.removeprefix("loss.") for text in listed if text != f"loss={loss}")])


def _short(snr: float) -> str:
    return f"{snr:.0f}" if snr >= 100 else f"{snr:.2g}"


if __name__ == "__main__":
    main()
