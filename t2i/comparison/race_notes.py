"""What a race said of the runs that are compared (see hydra/launcher=racing)."""

from collections.abc import Sequence

from t2i.comparison.results import Result
from t2i.config import ConfigError
from t2i.runs.files import check_fields, read_json
from t2i.runs.text import one_line, printable

RECORD = "race.json"  # in the sweep's folder
REMEDY = "delete this file, which the race writes anew"
LONGEST = 20  # lines of a summary


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
        notes.append(f"Race in {file.parent.name}: {' '.join(lines)}")
    return notes
