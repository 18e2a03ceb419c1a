"""Trackio: a dashboard on this machine, without an account."""

import contextlib
import io
import itertools
import logging
import shlex
import sqlite3
from pathlib import Path

from PIL import Image

from t2i.config import check_installed
from t2i.config.keys import flat

log = logging.getLogger(__name__)


class Trackio:
    """All runs of a project are in one SQLite file of Trackio's (TRACKIO_DIR)."""

    upload = ""

    def __init__(self, project: str):
        check_installed("trackio", "tracker=trackio", "'t2i[trackio]'")
        self.project = project

    def start(
        self,
        folder: Path,
        name: str,
        group: str | None,
        tags: list[str],
        config: dict,
        run_id: str | None,
        last_step: int,
    ) -> tuple[str, int]:
        import trackio

        recorded = self._rewind(run_id, last_step) if run_id else -1
        known = self._runs()
        if run_id not in known:
            name = _unique(name, set(known.values()))
        # It resumes by name, the newest of that name; so no two may have the same.
        arguments = {"name": known.get(run_id, name), "resume": "must" if run_id in known else "never"}
        with contextlib.redirect_stdout(io.StringIO()):
            # Flat, for the dashboard offers none of what is nested to group by.
            self.run = trackio.init(self.project, group=group, config=flat(config), embed=False, **arguments)
        log.info("to look at it: %s", shlex.join(["trackio", "show", "--project", self.project]))
        return self.run.id, recorded

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.run.log(metrics, step=step)

    def images(self, step: int, key: str, images: list[Image.Image], captions: list[str]) -> None:
        import trackio

        media = [trackio.Image(image, caption=text) for image, text in zip(images, captions, strict=True)]
        self.run.log({f"{key}/{place}": image for place, image in enumerate(media)}, step=step)  # no lists

    def finish(self, succeeded: bool) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()

    def _runs(self) -> dict[str, str]:
        """Name of each run, by its id."""
        import trackio

        with contextlib.suppress(ValueError):  # no such project yet
            return {run.id: run.name for run in trackio.Api().runs(self.project)}
        return {}

    def _rewind(self, run_id: str, last_step: int) -> int:
        """Delete what is about to be logged again; returns the last step that is left, or -1.

        Trackio keeps both rows of a step that is logged twice, and can't delete rows, hence the SQL. The last step may
        lack a row, as those for images and metrics are written one after the other, so it is deleted, too.
        """
        from trackio.sqlite_storage import SQLiteStorage

        file = SQLiteStorage.get_project_db_path(self.project)
        if not file.is_file():
            return -1
        with contextlib.closing(sqlite3.connect(file, timeout=30)) as store, store:
            (newest,) = store.execute("SELECT MAX(step) FROM metrics WHERE run_id = ?", [run_id]).fetchone()
            recorded = -1 if newest is None else min(last_step, newest - 1)
            store.execute("DELETE FROM metrics WHERE run_id = ? AND step > ?", [run_id, recorded])
        return recorded


def _unique(name: str, taken: set[str]) -> str:
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(candidate for candidate in names if candidate not in taken)
