"""What a run leaves behind: samples, metrics, checkpoints, the published model."""

import os
from collections.abc import Callable
from typing import Any

from t2i.translate.arguments import Arguments
from t2i.translate.epochs import steps_per_epoch

Settings = dict[str, Any]
Note = Callable[[str], None]  # takes a line about something that differs

TRACKERS = ("tensorboard", "wandb", "trackio")


def samples(args: Arguments, note: Note) -> Settings:
    """Which images are drawn while training, and how often."""
    single = args["validation_prompt"]
    prompts = args["validation_prompts"] or ([single] * args["num_validation_images"] if single else [])
    if not prompts:
        return {"sample_every": 0}
    steps, guidance = args.script.sampling
    settings = {"samples.prompts": prompts, "samples.steps": steps, "samples.guidance_scale": guidance}
    if (epochs := args["validation_epochs"]) is not None:
        if (each := steps_per_epoch(args)) is not None:
            settings["sample_every"] = epochs * each
        else:
            settings["sample_every"] = max(1, (args["max_train_steps"] or 0) // 10)
            note(
                f"--validation_epochs={epochs}: samples are drawn ten times, as the number of images is not known here "
                "(add --images N to t2i translate)"
            )
    note("samples: the same noise at every step, so that progress shows; the weights are the averaged ones, if any")
    return settings


def records(args: Arguments, note: Note) -> Settings:
    """Where it is written, how much is kept, and what is published."""
    settings: Settings = {}
    if args.given("output_dir"):
        settings["run"] = folder_name(args["output_dir"])
    tracker = args["report_to"]
    settings["tracker"] = tracker if tracker in TRACKERS else "none" if tracker == "none" else "wandb"
    if tracker not in (*TRACKERS, "none"):
        note(f"--report_to={tracker}: W&B is used; there are tensorboard, wandb and trackio (tracker=...)")
    if not args.given("report_to"):
        note(
            "tracker: TensorBoard, the script's default, needs pip install 't2i[tensorboard]'; leave out "
            "tracker=tensorboard for W&B, which is offline without an API key"
        )
    limit = args["checkpoints_total_limit"]
    if limit is None:
        note("checkpoints: the newest 2 are kept; the script keeps all (keep_checkpoints=all)")
    else:
        settings["keep_checkpoints"] = max(1, limit)
    if args["push_to_hub"]:
        name = args["hub_model_id"] or os.path.basename(os.path.normpath(args["output_dir"]))
        settings |= {"hub.push": True, "hub.repo": name, "hub.private": False}
    return settings


def folder_name(path: str) -> str:
    """An output folder as `run`: below multirun/, unless it is absolute or leads out of this folder."""
    normal = os.path.normpath(os.path.expanduser(path))
    return os.path.abspath(normal) if os.path.isabs(normal) or normal.startswith("..") else normal
