"""Average weights after training, and measure the averages on the battery.

t2i average RUN --length 0.05,0.1,0.2 makes averages of any length of a run that was trained with ema=post_hoc. The
length is the width of the average as a fraction of the training (sigma_rel of Karras et al. 2024).

t2i average RUN RUN ... averages several runs with each other: all of them, and those that a greedy choice takes
(Wortsman et al. 2022, "Model soups"). It is chosen by every other image of the battery and reported on the rest.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.cli.arguments import Parser, run_folder
from t2i.cli.failing import run
from t2i.config import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from t2i.comparison.significance import Difference
    from t2i.experiment.assembly import Experiment


def lengths(text: str) -> list[float]:
    """The type of --length."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} must be a number, or several: 0.05,0.1,0.2") from error


def parser() -> Parser:
    parser = Parser("average", __doc__)
    parser.add_argument(
        "paths", nargs="+", type=run_folder, metavar="RUN", help="run folder; of several, also checkpoints"
    )
    parser.add_argument("--length", type=lengths, metavar="X,...", help="lengths of averages of one run (0.01 to 0.28)")
    parser.add_argument("--soup", choices=("greedy", "uniform"), default="greedy", help="which --export writes")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="of several runs, which are averaged")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the best length, or the soup, as a model")
    parser.add_argument("--out", type=Path, help="folder for table and chart (default: averages/ in RUN)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    for path in options.paths:
        if not path.is_dir():
            raise ConfigError(f"{path} is not a folder; give a run folder, such as multirun/NAME")
    if options.length and len(options.paths) > 1:
        raise ConfigError("--length is for the averages of one run; several runs are averaged with each other")
    if options.export and options.export.exists():
        raise ConfigError(f"{options.export} exists; --export writes a new folder")
    if len(options.paths) > 1:
        average_runs(options.paths, options.weights, options.soup, options.export)
    else:
        average_steps(options.paths[0], options.length, options.export, options.out)


def average_steps(folder: Path, chosen: list[float] | None, target: Path | None, out: Path | None) -> None:
    """Measure averages of one run of several lengths, and write their table and chart."""
    from t2i.comparison.significance import difference
    from t2i.evaluation.metrics import Metric
    from t2i.experiment.averages import (
        USUAL,
        averages_of,
        errors,
        export,
        is_adapter,
        last_steps,
        open_run,
        trained_weights,
    )

    found = averages_of(folder, chosen or USUAL)
    experiment = open_run(folder)
    raw = errors(experiment, trained_weights(folder, "raw"))
    measured = [errors(experiment, average.weights) for average in found]
    changes = [difference(each[None], raw[None]) for each in measured]
    metric = Metric.named("val/loss")
    losses = [metric.value(each) for each in measured]
    best = min(range(len(found)), key=lambda i: losses[i])
    names = [f"length {average.length:g}" for average in found]
    show([("raw weights", metric.value(raw), None), *zip(names, losses, changes, strict=True)], names[best])
    averaged_to, raw_of = last_steps(folder)
    if averaged_to != raw_of:
        print(f"The averages end with the last snapshot, at step {averaged_to}, the raw weights at step {raw_of}.")
    if metric.value(raw) < losses[best]:
        print("The raw weights have the lowest val/loss: none of these averages helps.")
    worst = max(average.profile_error for average in found)
    print(f"Their profiles are met to {100 * worst:.1g} % or better.")
    if len(found) > 1:
        print(f"{names[best].capitalize()} was chosen by the same images, so its val/loss is slightly optimistic.")
    if is_adapter(experiment):
        print("adapter: its factors are averaged apart, as in training; the average of their product would be another.")
    for file in write(out or folder / "averages", folder, [average.length for average in found], losses, changes, best):
        print(file)
    if target:
        export(experiment, found[best].weights, target)
        print(target)


def average_runs(paths: list[Path], weights: str, soup: str, target: Path | None) -> None:
    """Measure the averages of several runs: of all, and of those that a greedy choice takes."""
    from t2i.comparison.significance import difference
    from t2i.evaluation.metrics import Metric
    from t2i.experiment.averages import errors, export
    from t2i.experiment.soups import CHOICE, REPORT, greedy

    experiment, stir = prepare_soups(paths, weights)
    loss = Metric.named("val/loss").value
    alone = [errors(experiment, stir([i])) for i in range(len(paths))]
    everyone = list(range(len(paths)))
    tasted: dict[tuple[int, ...], np.ndarray] = {(i,): each for i, each in enumerate(alone)}

    def taste(members: list[int]) -> "np.ndarray":
        if (key := tuple(sorted(members))) not in tasted:
            tasted[key] = errors(experiment, stir(members))
        return tasted[key]

    chosen = greedy(alone, taste, loss)
    best = min(everyone, key=lambda i: loss(alone[i][CHOICE]))
    reference = alone[best][REPORT]
    soups = {"uniform soup": everyone, "greedy soup": chosen}
    rows: list[tuple[str, float, Difference | None]] = [
        (str(path), loss(each[REPORT]), None if i == best else difference(each[None, REPORT], reference[None]))
        for i, (path, each) in enumerate(zip(paths, alone, strict=True))
    ]
    for name, members in soups.items():
        each = taste(members)[REPORT]
        rows.append((f"{name} of {len(members)}", loss(each), difference(each[None], reference[None])))
    show(rows, f"{soup} soup of {len(soups[f'{soup} soup'])}")
    print(
        f"Differences are those to {paths[best]}, the best run by the images that the soup was chosen by; all numbers "
        "are of the other half of the battery. One trained model each: another seed may differ."
    )
    print(f"Greedy soup: {', '.join(str(paths[i]) for i in chosen)}")
    if target:
        export(experiment, stir(soups[f"{soup} soup"]), target)
        print(target)


def prepare_soups(paths: list[Path], weights: str) -> "tuple[Experiment, Callable[[list[int]], dict[str, Tensor]]]":
    """The experiment of the first run, and what makes the average of some of the runs: members -> weights."""
    from t2i.experiment.averages import open_run, refuse_other_runs, run_of, trained_weights
    from t2i.experiment.soups import mean, mean_product, rank_of, refuse_factors, refuse_other_shapes

    ingredients: dict[str, dict[str, Tensor]] = {str(path): trained_weights(path, weights) for path in paths}
    adapted = any(".lora_A." in name for name in next(iter(ingredients.values())))
    refuse_factors(next(iter(ingredients.values())))
    refuse_other_shapes(ingredients, any_rank=adapted)
    refuse_other_runs([run_of(path) for path in paths])
    several = list(ingredients.values())
    if not adapted:
        return open_run(run_of(paths[0])), lambda members: mean([several[i] for i in members])
    rank = sum(map(rank_of, several))
    experiment = open_run(run_of(paths[0]), rank)
    return experiment, lambda members: mean_product([several[i] for i in members], rank)


def show(rows: "list[tuple[str, float, Difference | None]]", marked: str) -> None:
    """Print the losses, and how they differ, with 95 % intervals."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from t2i.comparison.wording import interval, number, percent
    from t2i.runs.text import printable

    table = Table("weights", "val/loss", "difference", "95 % interval", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, loss, change in rows:
        cells = ("–", "–") if change is None else (percent(change.estimate), interval(change))
        table.add_row(printable(name), number(loss, 5), *cells, style="bold" if name == marked else "")
    Console(markup=False, highlight=False).print(table)


def write(
    out: Path, folder: Path, lengths: list[float], losses: list[float], changes: "list[Difference]", best: int
) -> list[Path]:
    """Write the table and the chart of averages; returns the files."""
    from t2i.comparison.length_curve import length_curve
    from t2i.runs.files import atomic_write, replacing
    from t2i.runs.links import refuse_links_out

    if out.resolve().is_relative_to(folder.resolve()):
        refuse_links_out(folder, out)
    out.mkdir(parents=True, exist_ok=True)
    lines = ["length,val/loss,difference,low,high"]
    lines += [
        f"{length:g},{loss!r},{change.estimate!r},{change.low!r},{change.high!r}"
        for length, loss, change in sorted(zip(lengths, losses, changes, strict=True), key=lambda row: row[0])
    ]
    atomic_write(out / "lengths.csv", "\n".join(lines) + "\n")
    with replacing(out / "lengths.png") as file:
        length_curve(lengths, changes, best).savefig(file, dpi=150)
    return [out / "lengths.csv", out / "lengths.png"]


if __name__ == "__main__":
    run(main)
