"""The records of a trunk in the folder of a run that goes on from it: its curve begins where the trunk's began."""

import json
import logging
import shutil
from pathlib import Path

from t2i.runs.checkpoints import records_of
from t2i.runs.files import atomic_write
from t2i.runs.folder import Run
from t2i.runs.parentage import Parent
from t2i.runs.records import METRICS, lost, parse_metrics, read_metrics

log = logging.getLogger(__name__)
OF_VALIDATION = ("val/", "ref/")


def copy_records(parent: Parent, checkpoint: Path, run: Run, same_battery: bool, samples: bool) -> bool:
    """Copy the trunk's metrics, validations and samples up to the checkpoint; returns whether all were there.

    same_battery: whether its validations measure what the new run's do; otherwise they are left out. samples: whether
    its samples show what the new run's will. Records that are lost, or of another size than the checkpoint says, are
    named in a warning.
    """
    listed = records_of(checkpoint, parent.folder)
    missing = lost(parent.folder, listed)
    if missing:
        log.warning("records of %s are lost (%s)", parent.name, ", ".join(missing))
    for name in sorted(listed.keys() - set(missing) - {METRICS}):
        if (name.startswith("samples/") and samples) or (name.startswith("validation/") and same_battery):
            target = run.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(parent.folder / name, target)
    lines = [text for text, line in read_metrics(parent.folder).items() if line["step"] <= parent.step]
    if not same_battery:
        lines = [kept for text in lines if (kept := _without_validation(text))]
    atomic_write(run.folder / METRICS, "".join(f"{line}\n" for line in lines))
    return not missing


def _without_validation(text: str) -> str:
    line = parse_metrics(text) or {}
    kept = {key: value for key, value in line.items() if not key.startswith(OF_VALIDATION)}
    return json.dumps(kept) if any("/" in key and not key.startswith(("speed", "memory")) for key in kept) else ""
