"""Build the W&B report of a sweep: `t2i report --wandb ENTITY/PROJECT --sweep NAME`.

It plots the losses by loss.snr_gamma and the final loss against learning rate and snr_gamma, and shows the samples and
the settings in which the runs differ. The runs must have been uploaded (online, or by wandb sync).
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from t2i.cli.arguments import Parser
from t2i.cli.failing import run
from t2i.config import ConfigError, check_installed
from t2i.runs.files import replacing
from t2i.runs.full_disk import naming

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr

ABOUT = (
    "The weighted training losses of different weightings can't be compared. These can: the loss before weighting, "
    "and val/loss, which is measured on the same images, noise levels and noise in every run."
)


def parser() -> Parser:
    parser = Parser("report", __doc__)
    parser.add_argument("--wandb", required=True, metavar="ENTITY/PROJECT", help="project that holds the runs")
    parser.add_argument("--sweep", required=True, metavar="NAME", help="as in sweep=NAME; W&B calls it the group")
    parser.add_argument(
        "--dry-run", action="store_true", help="write its specification to a file instead; needs no login"
    )
    parser.add_argument("--out", type=Path, default=Path("report.json"), help="the file (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    entity, _, project = options.wandb.partition("/")
    if not (entity and project) or "/" in project:
        raise ConfigError(f"--wandb {options.wandb}: must be ENTITY/PROJECT")
    check_installed("wandb_workspaces", "t2i report", "'t2i[reports]'")
    from t2i.tracking.wandb import has_key

    if options.dry_run:
        report = build(entity, project, options.sweep, upload=False)
        with naming(options.out), replacing(options.out) as file:
            file.write_text(json.dumps(specification(report), indent=2) + "\n")
        print(options.out)
        return
    if not has_key():
        raise ConfigError("not logged in to W&B; run: wandb login, or use --dry-run")
    print(save(build(entity, project, options.sweep, upload=True)))


def build(entity: str, project: str, sweep: str, upload: bool) -> "wr.Report":
    """The report. With upload=False it does not name the project of its runs, which W&B would look up at once."""
    import wandb_workspaces.reports.v2 as wr

    snr_gamma, lr, loss = wr.Config("loss.snr_gamma"), wr.Config("optimizer.lr"), wr.SummaryMetric("val/loss")
    runs = wr.Runset(
        name=sweep,
        filters=f"Metric('group') == {sweep!r}",
        order=[wr.OrderBy(name=loss, ascending=True)],
        entity=entity if upload else "",
        project=project if upload else "",
    )

    def curve(metric: str, title: str) -> wr.LinePlot:
        return wr.LinePlot(
            title=title,
            x="step",
            y=[metric],
            log_y=True,
            groupby=snr_gamma,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )

    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=lr, log=True),
        wr.ParallelCoordinatesPlotColumn(metric=snr_gamma),
        wr.ParallelCoordinatesPlotColumn(metric=loss),
    ]
    panels = [
        curve("val/loss", "Validation loss, by snr_gamma"),
        curve("train/loss_unweighted", "Training loss before weighting, by snr_gamma"),
        wr.ScatterPlot(title="Learning rate and validation loss", x=lr, y=loss, z=snr_gamma, log_x=True),
        wr.ParallelCoordinatesPlot(title="Settings and validation loss", columns=columns),
        wr.MediaBrowser(title="Samples", media_keys=["samples"], mode="grid", grid_x_axis="step", grid_y_axis="run"),
        wr.RunComparer(diff_only="split"),
    ]
    blocks = [wr.P(ABOUT), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=entity, project=project, title=f"Sweep {sweep}", blocks=blocks, width="fluid")


def specification(report: "wr.Report") -> dict:
    """What `report.save()` would send. The library has no public name for it; tests/test_report.py pins its form."""
    return json.loads(report._to_model().model_dump_json(by_alias=True, exclude_none=True))


def save(report: "wr.Report") -> str:
    """Upload the report; returns its address."""
    try:
        return report.save().url
    except Exception as error:  # W&B's own, and bare ones, for a wrong name, a wrong key and a lost network alike
        raise ConfigError(f"W&B did not take the report: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    run(main)
