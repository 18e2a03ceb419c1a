"""Judge models by the images that they draw: `t2i evaluate PATH [PATH ...] ['metric=[clip_score,cmmd]']`.

A PATH is a run, a sweep, a checkpoint, a pipeline's folder or Hub id, tiny, a LoRA file (with --base), or a folder of
images of another tool, named by their prompts. All draw the same prompts from the same noise, so that they are compared
image by image, with intervals; the first PATH is the baseline. Prompts, seeds and metrics are settings, as for
`t2i train`: evaluation.prompts=prompts.txt evaluation.seeds=[0,1,2,3] metric=[clip_score,diversity]. Without them
they are those of the first run among the PATHs; its held-out captions are the prompts.

Images and scores are kept in the run's folder, or else in multirun/evaluated/: what is there is not drawn again.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.cli.arguments import Parser, as_run, positive
from t2i.cli.failing import run
from t2i.config import ConfigError

if TYPE_CHECKING:
    from t2i.evaluation.image_metrics.metric import Pictures
    from t2i.experiment.image_evaluation import ImageEvaluation
    from t2i.runs.scores_file import StoredScores

IN_GRID = 16  # prompts


@dataclass(frozen=True)
class Row:
    """The images of one source at one guidance scale, and their scores."""

    label: str
    source: str
    guidance_scale: float
    pictures: "Pictures"
    scores: "dict[str, StoredScores]"


def scales(text: str) -> list[float]:
    """The type of --guidance-scale: numbers, separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} must be a number, or several: 1,3,5") from error


def parser() -> Parser:
    parser = Parser("evaluate", __doc__)
    parser.add_argument("sources", nargs="+", metavar="PATH", help="see above; a setting if it contains =")
    parser.add_argument("--guidance-scale", type=scales, metavar="X,...", help="several give a curve of each metric")
    parser.add_argument("--steps", type=positive, help="denoising steps (default: evaluation.steps)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged (default) or raw weights")
    parser.add_argument("--base", metavar="MODEL", help="what .safetensors files of LoRA weights belong to")
    parser.add_argument("--groups", help="OpenMoji's groups (or all) whose captions are the prompts: animals,food")
    parser.add_argument(
        "--split", choices=("train", "validation"), default="train", help="of --groups (default: %(default)s)"
    )
    parser.add_argument("--captions", type=positive, default=128, help="of --groups, at most (default: %(default)s)")
    parser.add_argument("--grid", type=Path, help=f"write the first {IN_GRID} prompts' images of every PATH here")
    parser.add_argument("--curve", type=Path, default=Path("guidance.png"), help="chart of several guidance scales")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_intermixed_args(arguments)
    overrides = [text for text in options.sources if "=" in text and not Path(text).exists()]
    named = [as_run(text) for text in options.sources if text not in overrides]
    if not named:
        raise ConfigError("give at least one run, model or folder of images; see t2i evaluate --help")
    from t2i.experiment.judged_models import open_source, runs_in

    sources = [source for text in named for source in runs_in(text)]
    opened = [open_source(source, options.weights, options.base) for source in sources]
    evaluation = prepare(options, sources, overrides, opened)
    guidance_scales = options.guidance_scale or [evaluation.battery.guidance_scale]
    rows = []
    for scale in guidance_scales:
        scaled = replace(evaluation, battery=replace(evaluation.battery, guidance_scale=scale))
        for source, model in zip(sources, opened, strict=True):
            rows.append(judge(source, model, scaled, labelled=len(guidance_scales) > 1))
    show(evaluation, rows)
    if options.grid:
        write_grid(options.grid, rows, evaluation)
    if len(guidance_scales) > 1:
        from t2i.comparison.guidance import write_curves

        write_curves(options.curve, [(row.source, row.guidance_scale, row.scores) for row in rows])
        print(options.curve)


def prepare(
    options: argparse.Namespace, sources: Sequence[str], overrides: list[str], opened: Sequence[Any]
) -> "ImageEvaluation":
    """The image battery and the metrics; raises ConfigError before a model is loaded."""
    from accelerate import Accelerator
    from omegaconf import OmegaConf

    from t2i.config.instantiate import build_all
    from t2i.experiment.class_images import load_data
    from t2i.experiment.evaluation_settings import evaluation_settings, run_of
    from t2i.experiment.image_evaluation import emoji_evaluation, image_evaluation, make_image_evaluation
    from t2i.experiment.judged_models import OtherImages

    first_run = next((found for source in sources if (found := run_of(source))), None)
    cfg = evaluation_settings(first_run, overrides)
    if options.steps:
        cfg.evaluation.steps = options.steps
    metrics = build_all(cfg, "metric")
    for metric in metrics.values():
        metric.check()
    others = [other for other in opened if isinstance(other, OtherImages)]
    if options.groups:
        items = choose(options.groups, options.split, options.captions)
        return emoji_evaluation(cfg, metrics, [(item.emoji, item.caption) for item in items])
    if cfg.evaluation.prompts is None and first_run is None and others:
        OmegaConf.update(cfg, "evaluation.prompts", others[0].prompts)
    if cfg.evaluation.prompts is not None and first_run is None:
        return image_evaluation(cfg, metrics)
    return make_image_evaluation(cfg, metrics, load_data(cfg, Accelerator()))


def judge(source: str, model: Any, evaluation: "ImageEvaluation", labelled: bool) -> Row:
    from rich.progress import track

    from t2i.experiment.judged_models import scored

    def progress(batches: list) -> Iterable:
        return track(batches, f"drawing {Path(source).name}", transient=True)

    pictures, scores = scored(model, evaluation, progress)
    scale = evaluation.battery.guidance_scale
    name = Path(source).name or source
    return Row(f"{name}, guidance {scale:g}" if labelled else name, source, scale, pictures, scores)


def show(evaluation: "ImageEvaluation", rows: Sequence[Row]) -> None:
    """Print the scores with their intervals, between those of real images and of shuffled captions; the differences."""
    from rich.console import Console
    from rich.table import Table

    from t2i.comparison.score_table import bounds, difference_rows, notes, score_cell
    from t2i.experiment.judged_models import device
    from t2i.runs.text import printable

    battery, console = evaluation.battery, Console(markup=False, highlight=False)
    title = f"{len(battery.prompts)} prompts, {len(battery.seeds)} images of each; [95 % interval]"
    table = Table("images", *evaluation.metrics, title=title)
    for row in rows:
        table.add_row(printable(row.label), *(score_cell(row.scores.get(name)) for name in evaluation.metrics))
    for label, scores in bounds(evaluation, rows[0].pictures, device()):
        table.add_row(label, *(score_cell(scores.get(name)) for name in evaluation.metrics), style="dim")
    console.print(table)
    labelled = [(row.label, row.scores) for row in rows]
    if len(rows) > 1:
        table = Table(*("images", "metric", "difference [95 % interval]", "p after Holm", "verdict"))
        table.title = f"against {printable(rows[0].label)}, prompt by prompt"
        for cells in difference_rows(labelled):
            table.add_row(*map(printable, cells))
        console.print(table)
        console.print(
            "The intervals cover these models over other prompts and noise; another training seed could differ."
        )
    for note in notes(labelled):
        console.print(printable(f"! {note}"), style="yellow")


def write_grid(file: Path, rows: Sequence[Row], evaluation: "ImageEvaluation") -> None:
    """The first prompts' images from the first seed, with a row for each source."""
    from t2i.image_grid import grid
    from t2i.runs.files import replacing
    from t2i.runs.full_disk import naming

    prompts, seeds = evaluation.battery.prompts[:IN_GRID], len(evaluation.battery.seeds)
    images = [[row.pictures[place * seeds] for place in range(len(prompts))] for row in rows]
    size = images[0][0].size
    same = [[image if image.size == size else image.resize(size) for image in row] for row in images]
    file.parent.mkdir(parents=True, exist_ok=True)
    with naming(file), replacing(file) as temporary:
        grid(same, prompts, [row.label for row in rows]).save(temporary)


def choose(groups: str, split: str, count: int) -> Sequence[Any]:
    """At most `count` emoji of a split, spread evenly over the named groups (GROUP,GROUP or all)."""
    import numpy as np

    from t2i.data.openmoji import catalogue

    emoji = catalogue()
    names = {item.group for item in emoji}
    wanted = names if groups == "all" else set(groups.split(","))
    if unknown := wanted - names:
        raise ConfigError(
            f"--groups {','.join(sorted(unknown))}: no such group; choose from {', '.join(sorted(names))}"
        )
    items = [item for item in emoji if item.split == split and item.group in wanted]
    if not items:
        raise ConfigError(f"--groups {groups}: no emoji of these groups in --split {split}")
    indices = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[index] for index in indices]


if __name__ == "__main__":
    run(main)
