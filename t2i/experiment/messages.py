"""What a run says when it goes on from a checkpoint, and at its end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.runs.next_steps import as_typed, next_steps
from t2i.runs.records import headline
from t2i.runs.text import printable
from t2i.sweeps.manifest import MANIFEST

Lines = Sequence[Mapping[str, float]]  # of metrics.jsonl
ENDS = {  # state in run.json -> how the run ended before
    "interrupted": "it was interrupted at step {step}",
    "paused": "it was paused at step {step}",
    "stopped": "it was stopped at step {step}",
    "failed": "it failed at step {step} ({error})",
    "running": "its process died at step {step} without a word",
}


def resumed(step: int | None, steps: int, before: Mapping[str, Any], lines: Lines) -> str:
    """From which checkpoint a run goes on, and why; "" for a run that begins.

    step: that of the checkpoint, None without one. before: run.json as the last process left it. lines: logged so far.
    """
    how = ENDS.get(str(before.get("state")))
    if how is None:
        return ""
    last = max(int(lines[-1]["step"]) if lines else 0, step or 0)  # a checkpoint may be of a step that was not logged
    why = how.format(step=last, error=before.get("error", "no reason given"))
    if step is None:
        return f"begins again at step 0 of {steps}: {why}, before there was a checkpoint"
    again = f"; what was logged after step {step} is done again" if last > step else ""
    return f"goes on from the checkpoint of step {step} of {steps}: {why}{again}"


def ended(folder: Path, info: Mapping[str, Any], lines: Lines, steps: int) -> list[str]:
    """How a run came out, where its results are, and what to type next. info: run.json."""
    state = str(info.get("state"))
    found = [printable(f"{state}: {folder}{_result(lines)}")]
    found += [sentence] if (sentence := _rise(lines)) and state == "finished" else []
    if (folder.parent / MANIFEST).is_file():  # the sweep says the rest
        return found
    places = {"images": "samples/progress.png", "model": "model", "log": "train.log"}
    there = [f"{what} in {as_typed(folder / name)}" for what, name in places.items() if (folder / name).exists()]
    found += [", ".join(there)] if there else []
    commands = [step for step in next_steps(folder, state, info, steps) if step.command]
    return found + [f"to {step.what}: {step.command}" for step in commands]


def _result(lines: Lines) -> str:
    """The last value of what the run is judged by, and how it has changed."""
    name, values = _measured(lines)
    if not values:
        return ""
    what = name if name == "val/loss" else f"{name} (of images that it was trained on)"
    first, last = values[0], values[-1]
    if not (first[0] < last[0] and first[1] > 0):
        return f" · {what} {last[1]:.5f}"
    change = round(last[1] / first[1] - 1, 3) + 0.0  # no -0.0
    return f" · {what} {last[1]:.5f} ({change:+.1%} since step {first[0]})"


def _rise(lines: Lines) -> str:
    """What it means that val/loss is higher than before training; "" if it is not."""
    name, values = _measured(lines)
    if name != "val/loss" or len(values) < 2 or not values[-1][1] > values[0][1]:
        return ""
    step, lowest = min(values, key=lambda value: value[1])
    return (
        f"val/loss is higher than at the start; it was lowest at step {step} ({lowest:.5f}). Held-out images are "
        "predicted worse than before: a lower optimizer.lr, fewer steps or more images can help; look at samples, too"
    )


def _measured(lines: Lines) -> tuple[str, list[tuple[int, float]]]:
    """What the run is judged by, and its values with their steps."""
    name = headline({key: value for line in lines for key, value in line.items()})
    return name, [(int(line["step"]), line[name]) for line in lines if name and name in line]
