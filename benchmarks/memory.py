"""What the published models need in memory, by `t2i check --memory`, activations included.

    python benchmarks/memory.py [--only FAMILY ...]

No weights are needed: tests/helpers/published.py writes the settings of the pipelines.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers import published
from helpers.runs import compose

from t2i.config import ConfigError
from t2i.experiment.needs import Needs, needs
from t2i.experiment.plan import make_plan

COMMON = ("dataset.resolution=1024", "micro_batch_size=1", "batch_size=4", "gradient_checkpointing=true", "ema=none")
MODES = {
    "LoRA of rank 16, `bf16`": ("adapter=lora", "adapter.rank=16", "precision=bf16"),
    "all, `bf16_sr`": ("precision=bf16_sr",),
    "all, `bf16`": ("precision=bf16",),
}


def need(family: str, folder: Path, mode: str) -> Needs | None:
    """None if the family can't be trained in this way."""
    levels = ("checkpoint_levels=null",) if family in published.layouts.STOCK else ()
    cfg = compose(f"model={family}", f"model.path={folder}", "attention=sdpa", *levels, *COMMON, *MODES[mode])
    try:
        return needs(cfg, make_plan(cfg))
    except ConfigError as error:
        print(f"{family}, {mode}: {error}", file=sys.stderr)
        return None


def cell(found: Needs | None) -> str:
    """GB in all, and of these for activations."""
    return f"{found.training / 1e9:.1f} ({found.activations / 1e9:.1f})" if found else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="FAMILY", choices=[*published.PARTS], default=[*published.PARTS])
    options = parser.parse_args()
    print("| Model |", " | ".join(MODES), "| encoders, the largest first | a caption in the cache |")
    print("|---" * (len(MODES) + 3) + "|")
    for family in options.only:
        for name in published.DENOISERS[family]:
            with tempfile.TemporaryDirectory() as folder:
                place = published.save(family, name, Path(folder) / "pipeline")
                found = [need(family, place, mode) for mode in MODES]
            last = found[-1]
            assert last is not None, "every family can be trained completely"
            encoders = " + ".join(f"{size / 1e9:.1f}" for size in last.encoders.values())
            cells = [name, *map(cell, found), encoders, f"{last.caption / 1e6:.1f} MB"]
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
