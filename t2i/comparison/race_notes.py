"""What a race said of the runs that are compared (see hydra/launcher=racing)."""

from collections.abc import Sequence

from t2i.comparison.results import Result
from t2i.config import ConfigError
from t2i.runs.files import check_fields, read_json
from t2i.runs.folder import INFO
from t2i.runs.text import one_line, printable

RECORD = "race.json"  # in the sweep's folder
REMEDY = "delete this file, which the race writes anew"
LONGEST = 20  # lines of a summary
SECONDS = 1  # by which a run's file may be newer, on a file system with coarse dates
RENEW = "Runs have gone on since: the command of the race says what they change."


def race_notes(results: Sequence[Result]) -> list[str]:
    """The verdicts of the races that the runs took part in, or why they can't be read."""
    notes = []
    for file in dict.fromkeys(result.folder.parent / RECORD for result in results):
        if not file.is_file():
            continue
        try:
            content = read_json(file, REMEDY)
            check_fields(content, {"summary": list}, file, REMEDY)
        except ConfigError as error:
            notes.append(one_line(error))
            continue
        lines = [printable(line) for line in content.get("summary", [])[:LONGEST] if isinstance(line, str)]
        runs = (result.folder / INFO for result in results if result.folder.parent == file.parent)
        later = any(run.is_file() and run.stat().st_mtime > file.stat().st_mtime + SECONDS for run in runs)
        notes.append(f"Race in {file.parent.name}: {' '.join([*lines, *([RENEW] if later else [])])}")
    return notes
