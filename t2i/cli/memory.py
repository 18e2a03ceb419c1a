"""What a run needs in memory: `t2i check --memory [-m] OVERRIDES`.

Only the settings of the model and its tokenizers are read, or fetched from the Hub: no weights, and no images. Forward
and backward pass of the run's micro-batch are followed operation by operation, with tensors that have shapes but no
contents, so that a laptop can tell what the largest model needs.

The figures are for one process that holds the complete network, in the precision and attention that the run would have
on this machine. Not counted are the CUDA context (0.5 to 1 GB), fragmentation of the allocator, what a kernel takes for
itself, temporary buffers of the optimizer, and what `compile` saves.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.errors import HydraException

from t2i.cli.arguments import Job
from t2i.cli.failing import explain
from t2i.config import ConfigError
from t2i.config.checks import check, check_types

if TYPE_CHECKING:
    from t2i.experiment.needs import Needs
    from t2i.experiment.plan import Plan

COLUMNS = (
    *("job", "precision", "attention", "parameters", "trained", "frozen\nweights", "trained\nweights", "gradients"),
    *("optimizer", "average", "activations", "training\nGB", "encoders\nGB", "checkpoint\nGB"),
)


def tell(jobs: Sequence[Job]) -> int:
    """Print a line for each job; returns the exit code, 2 if any of them fails."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from t2i.runs.text import printable

    table, encoders, failures = Table(*COLUMNS), {}, []
    for column in table.columns[3:]:
        column.justify = "right"
    for job in jobs:
        name = escape(printable(job.name))
        try:
            plan, found = needs_of(job)
            table.add_row(name, *row(plan, found))
            encoders[before_training(found)] = True
        except (ConfigError, HydraException, OSError, ArithmeticError, RuntimeError) as error:
            message = explain(error, job.overrides) or f"{type(error).__name__}: {error}"
            failures.append(f"[red]{name}: {escape(printable(' '.join(message.split())))}")
    console = Console(width=None if sys.stdout.isatty() else 200)
    if table.row_count:
        console.print(table)
    for line in (*encoders, *failures):
        console.print(line)
    return 2 if failures else 0


def needs_of(job: Job) -> "tuple[Plan, Needs]":
    from t2i.config.compose import compose, compose_defaults
    from t2i.experiment.needs import needs
    from t2i.experiment.plan import check_the_rest, make_plan

    cfg = compose(job.overrides)
    check_types(cfg, compose_defaults(job.overrides))
    check(cfg, num_processes=1)
    plan = make_plan(cfg)
    check_the_rest(cfg)
    return plan, needs(cfg, plan)


def row(plan: "Plan", found: "Needs") -> list[str]:
    """The cells of a job after its name."""
    parts = (found.frozen, found.trained, found.gradients, found.optimizer, found.average, found.activations)
    sums = (found.training, found.encoding, found.checkpoint)
    counts = (count(found.parameters), count(found.trained_parameters))
    return [plan.precision.name, plan.attention, *counts, *(f"{size / 1e9:.2f}" for size in (*parts, *sums))]


def before_training(found: "Needs") -> str:
    sizes = ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in found.encoders.items())
    return (
        f"Encoders, which are gone before training: {sizes}. A caption takes {found.caption / 1e6:.2f} MB of the cache."
    )


def count(number: int) -> str:
    """In millions or billions."""
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"
