"""How a flow's times move towards noise: by a constant, or by the length of the image's sequence of tokens.

Larger images need more noise to lose the same information (Esser et al. 2024, arXiv 2403.03206, section 5.3.2). The
formulas are those by which FlowMatchEulerDiscreteScheduler of Diffusers samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from t2i.config import ConfigError

TIME_SHIFT_TYPES = {"exponential": math.exp, "linear": float}  # how mu becomes the factor


@dataclass(frozen=True, kw_only=True)
class ByLength:
    """The factor of a sequence of tokens: `time_shift_type` makes it of `mu`, which rises linearly with the length."""

    base_shift: float  # mu at base_image_seq_len
    max_shift: float  # mu at max_image_seq_len
    base_image_seq_len: int
    max_image_seq_len: int
    time_shift_type: str

    def __post_init__(self):
        if self.time_shift_type not in TIME_SHIFT_TYPES:
            raise ConfigError(
                f"scheduler.time_shift_type={self.time_shift_type} is not known; choose from "
                f"{', '.join(TIME_SHIFT_TYPES)}"
            )

    def mu(self, tokens: float) -> float:
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (tokens - self.base_image_seq_len)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """sigma = s·u / (1 + (s − 1)·u) for a time u in [0, 1] (equation 23), then stretched to begin at `terminal`.

    s is `factor`, or that of the image's tokens if there is `by_length`. mu: a family's own rule in place of
    `by_length.mu`.
    """

    factor: float = 1.0
    terminal: float = 0.0
    by_length: ByLength | None = None
    mu: Callable[[float], float] | None = None

    def __post_init__(self):
        if not self.factor > 0:
            raise ConfigError(f"scheduler.shift={self.factor} must be positive; 1 shifts nothing")
        if not 0 <= self.terminal < 1:
            raise ConfigError(
                f"scheduler.shift_terminal={self.terminal} must be at least 0 and below 1; 0 = no stretch"
            )

    @classmethod
    def from_config(cls, config: Any) -> "Shift | None":
        """The shift of a scheduler's configuration; None if the scheduler is not that of a flow."""
        factor = config.get("flow_shift", config.get("shift"))
        if factor is None:
            return None
        by_length = None
        if config.get("use_dynamic_shifting"):  # Diffusers then ignores the constant factor
            by_length = ByLength(
                base_shift=config.get("base_shift", 0.5),
                max_shift=config.get("max_shift", 1.15),
                base_image_seq_len=config.get("base_image_seq_len", 256),
                max_image_seq_len=config.get("max_image_seq_len", 4096),
                time_shift_type=config.get("time_shift_type", "exponential"),
            )
        return cls(factor=factor, terminal=config.get("shift_terminal") or 0.0, by_length=by_length)

    def factor_of(self, tokens: float | None) -> float:
        """s for an image of so many tokens; None: for the longest sequence that `by_length` names."""
        if self.by_length is None:
            return self.factor
        mu = self.mu or self.by_length.mu
        tokens = self.by_length.max_image_seq_len if tokens is None else tokens
        return TIME_SHIFT_TYPES[self.by_length.time_shift_type](mu(tokens))

    def __call__(self, u: Tensor, tokens: float | None = None) -> Tensor:
        """sigma at the times u, from 0 (clean) to 1 (noise)."""
        s = self.factor_of(tokens)
        sigma = s * u / (1 + (s - 1) * u)
        return self.terminal + (1 - self.terminal) * sigma if self.terminal else sigma
