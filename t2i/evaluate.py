"""Score a model's images of emoji against their captions: `t2i evaluate RUN [RUN ...]`.

The score is the cosine similarity of image and caption in a small CLIP. The same CLIP conditions the model, and it is
insensitive to blur, so read a score between two others: "shuffled", the score with another image's caption, is what an
image gets that ignores its caption; the row "real" is the best to expect. "own image nearest" does without CLIP: it is
the fraction of samples that are nearest, in pixels, to the real image of their own caption. Look at --grid, too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.cli.arguments import Parser, add_sampling_options, positive
from t2i.cli.failing import run
from t2i.config import ConfigError

if TYPE_CHECKING:
    from t2i.data.openmoji import Emoji

IN_GRID = 16  # captions
COLUMNS = ("images", "score", "shuffled", "own caption first", "own image nearest")


def parser() -> Parser:
    parser = Parser("evaluate", __doc__)
    parser.add_argument("sources", nargs="+", metavar="RUN", help="run folder, checkpoint, pipeline, Hub id, or tiny")
    parser.add_argument("--groups", default="animals,food", help="OpenMoji's groups, or all (default: %(default)s)")
    parser.add_argument(
        "--split",
        choices=("train", "validation"),
        default="train",
        help="which split of OpenMoji (default: %(default)s)",
    )
    parser.add_argument(
        "--captions",
        type=positive,
        default=128,
        help="how many captions, spread evenly over the groups (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=positive, default=2, help="images of each caption (default: %(default)s)")
    add_sampling_options(parser)
    parser.add_argument("--grid", type=Path, help=f"write the first {IN_GRID} captions' images of every RUN here")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    from rich.console import Console
    from rich.table import Table

    from t2i.data.openmoji import draw
    from t2i.image_grid import grid
    from t2i.models.loading import naming_model
    from t2i.runs.files import replacing
    from t2i.runs.full_disk import naming
    from t2i.sampling.images import sample
    from t2i.sampling.pipelines import load_pipeline
    from t2i.tiny.judge import Judge, nearest_is_own

    items = choose(options.groups, options.split, options.captions)
    captions = [item.caption for item in items]
    judge, real = Judge(), [draw(item.emoji, 64) for item in items]
    table = Table(*COLUMNS, title=f"{len(items)} captions, {options.seeds} seeds")

    def add(name: str, images: list, repeats: int) -> None:
        match = judge.match(images, captions * repeats)
        nearest = nearest_is_own(images, real)
        table.add_row(name, f"{match.score:.3f}", f"{match.shuffled:.3f}", f"{match.recall:.0%}", f"{nearest:.0%}")

    rows = []
    for source in options.sources:
        pipeline = load_pipeline(source, options.weights)
        settings = {"steps": options.steps, "guidance_scale": options.guidance_scale}
        with naming_model(source, "sampled from"):  # the model may be anybody's
            images = [image for seed in range(options.seeds) for image in sample(pipeline, captions, seed, **settings)]
        rows.append(images[:IN_GRID])
        add(source, images, options.seeds)
    add("real", real, 1)
    Console().print(table)
    if options.grid:
        with naming(options.grid), replacing(options.grid) as temporary:
            grid(rows, captions[:IN_GRID], [Path(source).name for source in options.sources]).save(temporary)


def choose(groups: str, split: str, count: int) -> Sequence["Emoji"]:
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
