"""Samplers by their names in Diffusers, for images that are drawn otherwise than with the model's own."""

import copy
from typing import Any

from t2i.config import ConfigError


def with_sampler(pipeline: Any, name: str | None) -> Any:
    """The pipeline with another scheduler, which has the settings of its own; the same pipeline where name is None.

    Raises ConfigError for a scheduler that can't take the place of its own.
    """
    if name is None:
        return pipeline
    own = pipeline.scheduler
    kinds = {kind.__name__: kind for kind in own.compatibles}
    if name not in kinds:
        raise ConfigError(
            f"evaluation.sampler={name} can't take the place of this model's {type(own).__name__}; use null, or one of "
            f"{', '.join(sorted(kinds))}"
        )
    changed = copy.copy(pipeline)
    changed.register_modules(scheduler=kinds[name].from_config(own.config))
    return changed
