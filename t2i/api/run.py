"""Run folders in Python: what a run has left so far, with metrics as a DataFrame and samples as images."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2i.api.folders import find_folder, nearby
from t2i.api.pictures import image_tag, svg
from t2i.config import ConfigError
from t2i.runs.config_file import read_config
from t2i.runs.files import numbered
from t2i.runs.names import refuse_missing
from t2i.runs.records import headline, read_metrics
from t2i.runs.samples_file import read_samples

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from t2i.comparison.results import Result

SHOWN = ("train/loss", "val/loss", "val/ema/loss", "val/train_loss")  # the curves of a run's page
STEPS_SHOWN = 4  # rows of samples in a notebook


@dataclass(frozen=True)
class Sample:
    """An image that a run drew."""

    step: int
    prompt: str
    image: "Image"


class Samples(list[Sample]):
    """The samples of a run, in the order of steps and prompts."""

    def at(self, step: int) -> "Samples":
        return Samples(sample for sample in self if sample.step == step)

    @property
    def steps(self) -> list[int]:
        return list(dict.fromkeys(sample.step for sample in self))

    def grid(self) -> "Image":
        """All of them in one image: a row for each step, a column for each prompt."""
        from t2i.image_grid import grid

        if not self:
            raise ConfigError("the run has no samples; sample_every says how often they are drawn")
        rows = [self.at(step) for step in self.steps]
        prompts = [sample.prompt for sample in rows[0]]
        return grid([[s.image for s in row] for row in rows], prompts, [f"step {step}" for step in self.steps])

    def _repr_html_(self) -> str:
        return image_tag(self.grid(), "samples, a row for each step") if self else "<p>no samples</p>"


class Run:
    """A run folder. It is read anew at each access, so it can be watched while the run goes on."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.state}{self._headline_text()})"

    @property
    def state(self) -> str:
        """finished, paused, interrupted, failed, running, or another word of run.json."""
        return self._result().state

    @property
    def config(self) -> dict[str, Any]:
        """The settings, resolved, as nested dictionaries."""
        return read_config(self.folder)

    @property
    def info(self) -> dict[str, Any]:
        """run.json: state, versions, data, hardware."""
        return self._result().info

    @property
    def metrics(self) -> "pandas.DataFrame":
        """A row for each step of metrics.jsonl; columns such as train/loss and val/loss, NaN where not measured."""
        import pandas

        lines = list(read_metrics(self.folder).values())
        table = pandas.DataFrame(lines, columns=list(dict.fromkeys(key for line in lines for key in line)) or ["step"])
        return table.groupby("step").last()

    @property
    def result(self) -> float:
        """The last val/loss, or what stands for it; NaN if nothing was validated."""
        name, value = self._headline()
        return value if name else float("nan")

    @property
    def samples(self) -> Samples:
        """The images that were drawn while training, with prompts and steps."""
        prompts, files = self.config["samples"]["prompts"], numbered(self.folder / "samples", "png")
        since = self.info.get("samples_since", -1)  # older ones show other prompts
        return Samples(
            Sample(step, prompt, image)
            for step, file in sorted(files.items())
            if step > since
            for prompt, image in zip(prompts, read_samples(file, len(prompts)), strict=True)
        )

    @property
    def model(self) -> Path:
        """The exported pipeline, or adapters. Raises ConfigError if the run has none yet."""
        folder = self.folder / "model"
        if not folder.is_dir():
            raise ConfigError(f"{self.folder} has no model yet: the run is {self.state}")
        return folder

    def _result(self) -> "Result":
        from t2i.comparison.results import read_results

        return read_results([self.folder])[0]

    def _headline(self) -> tuple[str, float]:
        for line in reversed(list(read_metrics(self.folder).values())):
            if name := headline(line):
                return name, line[name]
        return "", float("nan")

    def _headline_text(self) -> str:
        name, value = self._headline()
        return f", {name} {value:.5f}" if name else ""

    def _repr_html_(self) -> str:
        """State and result, curves, and some of the samples."""
        parts = [f"<p><b>{escape(str(self.folder))}</b>: {escape(self.state)}{escape(self._headline_text())}</p>"]
        parts.append(_curves(self.metrics))
        if samples := self.samples:
            steps = _spread(samples.steps, STEPS_SHOWN)
            parts.append(Samples(sample for sample in samples if sample.step in steps)._repr_html_())
        return "".join(parts)


class Runs(list[Run]):
    """Several runs, shown as a table."""

    @property
    def table(self) -> "pandas.DataFrame":
        """A row for each run: its state, its step, its result, and the settings in which the runs differ."""
        import pandas

        from t2i.config.keys import flat

        settings = [flat(run.config) for run in self]
        keys = dict.fromkeys(key for one in settings for key in one if not key.startswith(("run", "hub.", "tracker.")))
        differ = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
        rows = []
        for run, one in zip(self, settings, strict=True):
            metrics = run.metrics
            last = int(metrics.index.max()) if len(metrics) else None
            chosen = {key: one.get(key) for key in differ}
            rows.append({"run": str(run.folder), "state": run.state, "step": last, "result": run.result, **chosen})
        return pandas.DataFrame(rows, columns=["run", "state", "step", "result", *differ]).set_index("run")

    def _repr_html_(self) -> str:
        return self.table.to_html(na_rep="–") if self else "<p>no runs</p>"


def open_run(path: str | Path) -> Run:
    """The run in a folder, or of a name in multirun/. Raises ConfigError if there is none."""
    from t2i.comparison.results import read_results

    folder = find_folder(path)
    if not folder.is_dir():
        refuse_missing(str(folder if len(folder.parts) > 1 else Path("multirun") / folder))
        raise ConfigError(f"{path}: no such run; t2i.open_runs() lists those in multirun/")
    found = read_results([folder])
    if len(found) > 1:
        raise ConfigError(f"{path} holds {len(found)} runs; t2i.open_runs({str(path)!r}) opens them all")
    return Run(nearby(found[0].folder))


def open_runs(path: str | Path = "multirun") -> Runs:
    """The runs in a folder and those below it, sorted by name. Raises ConfigError if there are none."""
    from t2i.comparison.results import read_results

    return Runs(Run(nearby(result.folder)) for result in read_results([find_folder(path)]))


def _spread(steps: Sequence[int], count: int) -> set[int]:
    """So many of the steps, evenly, with the first and the last."""
    if len(steps) <= count:
        return set(steps)
    return {steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)}


def _curves(metrics: "pandas.DataFrame") -> str:
    """The losses over the steps, as an image; nothing if there are none."""
    from t2i.comparison.charts import create_axes

    names = [name for name in SHOWN if name in metrics and metrics[name].notna().sum() > 1]

    def draw() -> "Figure":
        figure, (axes,) = create_axes([6.0], 2.4, legend=names)
        for name in names:
            values = metrics[name].dropna()
            axes.plot(values.index, values.to_numpy(), label=name, alpha=0.5 if name == "train/loss" else 1.0)
        axes.set_xlabel("step")
        figure.legend(loc="lower center", ncols=len(names))
        return figure

    return svg(draw, "losses over the steps") if names else ""
