"""Trackio, a dashboard on this machine without an account."""

import contextlib
import io
import itertools
import logging
import shlex
import sqlite3

from PIL import Image

from t2i.config import check_installed
from t2i.config.keys import flat
from t2i.tracking.run_info import RunInfo

log = logging.getLogger(__name__)


class Trackio:
    """Stores all runs of a project in one SQLite file of Trackio's (in TRACKIO_DIR)."""

    upload = ""

    def __init__(self, project: str):
        check_installed("trackio", "tracker=trackio", "'t2i[trackio]'")
        self.project = project

    def start(self, info: RunInfo) -> tuple[str, int]:
        import trackio

        recorded = delete_later_steps(self.project, info.run_id, info.last_step) if info.run_id else -1
        names = self._names()
        # Trackio resumes the newest run of a name, so no two runs may have the same.
        name = names[info.run_id] if info.run_id in names else _unique(info.name, set(names.values()))
        with contextlib.redirect_stdout(io.StringIO()):
            self.run = trackio.init(
                self.project,
                name=name,
                resume="must" if info.run_id in names else "never",
                group=info.group,
                config=flat(info.config),  # the dashboard can't group by nested values
                embed=False,
            )
        log.info("to view the run: %s", shlex.join(["trackio", "show", "--project", self.project]))
        return self.run.id, recorded

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None:
        import trackio

        media = [trackio.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
        self.run.log({f"{key}/{i}": image for i, image in enumerate(media)}, step=step)  # Trackio takes no lists

    def finish(self, succeeded: bool) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()

    def _names(self) -> dict[str, str]:
        """Id -> name of each run in the project."""
        import trackio

        with contextlib.suppress(ValueError):  # the project does not exist yet
            return {run.id: run.name for run in trackio.Api().runs(self.project)}
        return {}


def delete_later_steps(project: str, run_id: str, last_step: int) -> int:
    """Delete a run's rows after `last_step`; returns the last step that is left, or -1.

    Trackio keeps both rows of a step that is logged twice, and has no call that deletes rows. So this is SQL on its
    tables, which may change in any version: pyproject.toml allows only the tested one. The newest step is deleted, too,
    because it may be incomplete: its rows for images and metrics are written one after the other.
    """
    from trackio.sqlite_storage import SQLiteStorage

    file = SQLiteStorage.get_project_db_path(project)
    if not file.is_file():
        return -1
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as database, database:
        (newest,) = database.execute("SELECT MAX(step) FROM metrics WHERE run_id = ?", [run_id]).fetchone()
        recorded = -1 if newest is None else min(last_step, newest - 1)
        database.execute("DELETE FROM metrics WHERE run_id = ? AND step > ?", [run_id, recorded])
    return recorded


def _unique(name: str, taken: set[str]) -> str:
    """The name, or else name-2, name-3, ..."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in names if candidate not in taken)
