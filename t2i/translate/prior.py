"""Prior preservation of DreamBooth's scripts: own images and images of their class as two sources."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from t2i.config import ConfigError
from t2i.translate.arguments import Arguments


def sources(args: Arguments, own: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """The settings of a data set of two sources. own: those of the data set of own images alone.

    The script's loss is the mean over own images plus prior_loss_weight times that over class images. The loss of a
    batch is here one mean over both, of which each source is a half; so both weights are doubled.
    """
    for flag in ("class_data_dir", "class_prompt"):
        if not args[flag]:
            raise ConfigError(f"--with_prior_preservation needs --{flag}, in the script as well")
    mine: dict[str, Any] = {"dataset": "hub"} if own["dataset"] == "hub" else {}
    for key in ("path", "name", "image_column", "caption_column", "caption"):
        if (value := own.get(f"dataset.{key}")) is not None:
            mine[key] = value
    folder = args["class_data_dir"]
    its: dict[str, Any] = {"class_prompt": args["class_prompt"], "class_images": args["num_class_images"]}
    if Path(folder).expanduser().is_dir():
        its = {"path": folder, **its}
        note(f"--class_data_dir: images that {folder} lacks are drawn as well, but kept in cache_dir")
    else:
        note(
            f"--class_data_dir: there is no {folder} here, so all class images are drawn, once, and kept in cache_dir; "
            f"if it holds some, add path: {folder} to the source"
        )
    note("class images: they are drawn with the steps and the guidance of samples; the script takes 50 and 7.5")
    pair = [
        {**mine, "weight": 1, "loss_weight": 2},
        {**its, "weight": 1, "loss_weight": _whole(2 * args["prior_loss_weight"])},
    ]
    kept = {key: value for key, value in own.items() if key in ("dataset.crop", "dataset.validation_share")}
    return {"dataset": "sources", "dataset.sources": pair, "dataset.split_folders": False, **kept}


def _whole(number: float) -> float | int:
    return int(number) if number == int(number) else number
