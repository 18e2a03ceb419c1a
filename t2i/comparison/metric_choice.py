"""The metric that a command line names."""

from t2i.comparison.verdicts import AnyMetric, Comparison
from t2i.config import ConfigError
from t2i.evaluation.metrics import Metric


def choose_metric(comparison: Comparison, name: str | None) -> AnyMetric:
    """The metric of this name; None: what the runs are judged by."""
    if name is None:
        return comparison.headline
    name = name.removeprefix("images/")
    if found := next((metric for metric in comparison.metrics if metric.name == name), None):
        return found
    if "/" in name:
        Metric.named(name)  # or raise ConfigError
        raise ConfigError(f"--metric {name} was not measured in every run; choose one of val/...")
    known = ", ".join(metric.name for metric in comparison.scores) or "by none yet"
    raise ConfigError(
        f"--metric {name}: not all runs' images were judged by it ({known}); do so first: "
        f"t2i evaluate RUN ... 'metric=[{name}]'"
    )
