"""The commands of `t2i`, in the order of a user's day. Each is imported only when it is called."""

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple


class Command(NamedTuple):
    """A line of `t2i --help`."""

    module: str
    summary: str
    takes_overrides: bool = False  # settings and options of conf/, which completion then offers
    function: str = "main"

    def load(self) -> Callable[[list[str]], int | None]:
        """The function that runs the command; it takes the arguments and may return an exit code."""
        return getattr(import_module(self.module), self.function)


COMMANDS = {
    "data": Command("t2i.cli.data", "Say what is in a data set: captions, sizes, duplicates, what is left out.", True),
    "train": Command("t2i.train", "Train one run, or with -m every run of a sweep.", True, "cli"),
    "runs": Command("t2i.cli.runs", "List runs: state, settings that differ, val/loss, time."),
    "show": Command("t2i.cli.show", "Make the page of a run: curves, samples, settings; renewed while it trains."),
    "compare": Command("t2i.compare", "Say which runs are better, by how much, and whether it is more than noise."),
    "plan": Command("t2i.plan", "Say how many seeds, images and hours a comparison needs, from a small pilot."),
    "judge": Command(
        "t2i.judge", "Let people judge the images of runs, two at a time, without knowing which is which."
    ),
    "sample": Command("t2i.sample", "Generate images from a run, a checkpoint or a pipeline."),
    "evaluate": Command("t2i.evaluate", "Judge models by the images that they draw, with intervals.", True),
    "check": Command("t2i.check", "Try a run in miniature, and estimate its time, memory and disk space.", True),
    "encode": Command("t2i.encode", "Encode a data set ahead of the runs that use it.", True),
    "weights": Command("t2i.weights", "Plot what a loss weighting does, before paying for a run.", True),
    "average": Command("t2i.average", "Average weights over the steps of a run, or over runs, after training."),
    "translate": Command(
        "t2i.translate.command", "Turn a command line of Diffusers' training scripts into one of t2i."
    ),
    "push": Command("t2i.push", "Push a finished run's model to the Hugging Face Hub."),
    "report": Command("t2i.report", "Build the W&B report of a sweep."),
    "settings": Command("t2i.cli.settings", "Search all settings and options, with defaults and explanations."),
}
