"""Score a model's images of emoji against their captions: `python -m t2i.evaluate RUN [RUN ...]`.

The judge is the small CLIP that also conditions the model, so it is easily pleased: the same captions, shuffled, say
what a score is worth when the caption doesn't matter, and the real images what is the best to hope for. The share of
samples that are nearest to their own real image, in pixels, does without it. Look at --grid, too.
"""

import argparse
import sys
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m t2i.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="+", metavar="RUN", help="run folder, checkpoint, pipeline, Hub id, or tiny")
    parser.add_argument("--groups", default="animals,food", help="of OpenMoji, or all (default: %(default)s)")
    parser.add_argument("--split", choices=("train", "validation"), default="train", help="default: %(default)s")
    parser.add_argument("--captions", type=int, default=128, help="at most, spread over the groups (default: 128)")
    parser.add_argument("--seeds", type=int, default=2, help="images of each caption (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="default: %(default)s")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="default: %(default)s")
    parser.add_argument("--grid", type=Path, help="write the first 16 captions' images of every source here")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from t2i.config import ConfigError
    from t2i.data.openmoji import catalogue, draw
    from t2i.image_grid import grid
    from t2i.sampling.images import sample
    from t2i.sampling.pipelines import load_pipeline
    from t2i.tiny.judge import Judge, nearest_is_own

    groups = None if options.groups == "all" else options.groups.split(",")
    items = [item for item in catalogue() if item.split == options.split and (not groups or item.group in groups)]
    if not items:
        parser().error(f"--groups {options.groups}: no image; there are {', '.join({e.group for e in catalogue()})}")
    chosen = np.linspace(0, len(items) - 1, min(options.captions, len(items))).round().astype(int)
    items = [items[place] for place in chosen]
    captions = [item.caption for item in items]

    judge, real = Judge(), [draw(item.emoji, 64) for item in items]
    table = Table(
        "images",
        "score",
        "shuffled",
        "own caption first",
        "own image nearest",
        title=f"{len(items)} captions, {options.seeds} seeds",
    )

    def add(name, images, times):
        found = judge.match(images, captions * times)
        nearest = nearest_is_own(images, real)
        table.add_row(name, f"{found.score:.3f}", f"{found.shuffled:.3f}", f"{found.recall:.0%}", f"{nearest:.0%}")

    rows = []
    for source in options.sources:
        try:
            pipeline = load_pipeline(source, options.weights)
        except ConfigError as error:
            print(f"t2i: {error}", file=sys.stderr)
            sys.exit(2)
        settings = {"steps": options.steps, "guidance_scale": options.guidance_scale}
        images = [image for seed in range(options.seeds) for image in sample(pipeline, captions, seed, **settings)]
        rows.append(images[:16])
        add(source, images, options.seeds)
    add("real", real, 1)
    Console().print(table)
    if options.grid:
        grid(rows, captions[:16], [Path(source).name for source in options.sources]).save(options.grid)


if __name__ == "__main__":
    main()
