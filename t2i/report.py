"""Build the W&B report of a sweep: `python -m t2i.report --wandb ENTITY/PROJECT --sweep NAME`.

Curves of the losses by loss.snr_gamma, final loss against learning rate and snr_gamma, the samples, and what tells the
runs apart. The runs must have been uploaded (online, or by wandb sync).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m t2i.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wandb", required=True, metavar="ENTITY/PROJECT", help="where the runs are")
    parser.add_argument("--sweep", required=True, metavar="NAME", help="as in sweep=NAME; W&B calls it the group")
    parser.add_argument("--dry-run", action="store_true", help="write the report's specification instead; no login")
    parser.add_argument("--out", type=Path, default=Path("report.json"), help="of --dry-run (default: %(default)s)")
    return parser


def build(entity: str, project: str, sweep: str, upload: bool) -> Any:
    """The report; with upload=False it does not name the project of its runs, for W&B looks that up at once."""
    import wandb_workspaces.reports.v2 as wr

    snr_gamma, lr, loss = wr.Config("loss.snr_gamma"), wr.Config("optimizer.lr"), wr.SummaryMetric("val/loss")
    where = {"entity": entity, "project": project} if upload else {}
    runs = wr.Runset(
        name=sweep,
        filters=f"Metric('group') == {sweep!r}",
        order=[wr.OrderBy(name=loss, ascending=True)],
        **where,
    )

    def curve(metric: str, title: str) -> wr.LinePlot:
        by_gamma = {"groupby": snr_gamma, "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
        return wr.LinePlot(title=title, x="step", y=[metric], log_y=True, **by_gamma)

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
    about = (
        "The weighted training losses of different weightings can't be compared. These can: the loss before weighting, "
        "and val/loss, which is measured on the same images, timesteps and noise in every run."
    )
    blocks = [wr.P(about), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=entity, project=project, title=f"Sweep {sweep}", blocks=blocks, width="fluid")


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    entity, _, project = options.wandb.partition("/")
    if not (entity and project) or "/" in project:
        parser().error(f"--wandb {options.wandb}: must be ENTITY/PROJECT")
    from t2i.config import ConfigError, check_installed
    from t2i.tracking.wandb import has_key

    try:
        check_installed("wandb_workspaces", "python -m t2i.report", "'t2i[reports]'")
        if options.dry_run:
            report = build(entity, project, options.sweep, upload=False)
            options.out.write_text(json.dumps(specification(report), indent=2) + "\n")
            print(options.out)
            return
        if not has_key():
            raise ConfigError("not logged in to W&B; run: wandb login, or use --dry-run")
        report = build(entity, project, options.sweep, upload=True)
        print(_save(report))
    except ConfigError as error:
        print(f"t2i: {error}", file=sys.stderr)
        sys.exit(2)


def specification(report: Any) -> dict[str, Any]:
    """What `save` would send to W&B. This takes a private method, so pyproject.toml bounds the version."""
    return json.loads(report._to_model().model_dump_json(by_alias=True, exclude_none=True))


def _save(report: Any) -> str:
    """Upload the report; returns its address."""
    from t2i.config import ConfigError

    try:
        return report.save().url
    except Exception as error:  # W&B's own, and bare ones, for a wrong name, a wrong key and a lost network alike
        raise ConfigError(f"W&B did not take the report: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    main()
