"""Adapters of LyCORIS: products of small matrices by Kronecker, and by Hadamard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2i.config import ConfigError
from t2i.models.layer_choice import fitting
from t2i.models.peft_adapter import PeftAdapter, check_ranks, ranked


@dataclass(kw_only=True)
class LoKr(PeftAdapter):
    """W + alpha / rank · w1 ⊗ w2, whose factors are products of two matrices where the rank is small enough.

    Yeh et al. 2023, arXiv 2309.14859. Two complete factors have no rank, and are not scaled, as in LyCORIS.
    """

    rank: int
    alpha: float
    factor: int  # rows and columns are cut into this many blocks, or as near as they can be; -1: the square root
    decompose_both: bool  # whether the smaller factor is a product, too
    convolutions: bool  # whether the kernels of convolutions have a factor of their own (Tucker)
    rank_pattern: Mapping[str, int] | None = None  # other ranks of layers, by the ends of their names
    alpha_pattern: Mapping[str, float] | None = None  # other alphas; by default alpha / rank stays the same

    kind = "lokr"

    def __post_init__(self) -> None:
        check_ranks(self.rank, self.alpha, self.patterns)
        super().__post_init__()
        if self.factor != -1 and self.factor < 1:
            raise ConfigError(f"adapter.factor={self.factor} must be a number of blocks, such as 8 or 16, or -1")

    @property
    def patterns(self) -> dict[str, Mapping[str, float]]:
        return {"rank_pattern": self.rank_pattern or {}, "alpha_pattern": self.alpha_pattern or {}}

    def config(self, layers: Sequence[str]) -> Any:
        from peft import LoKrConfig

        return LoKrConfig(
            **_ranks(self, layers),
            rank_dropout=self.dropout,
            decompose_both=self.decompose_both,
            decompose_factor=self.factor,
            use_effective_conv2d=self.convolutions,
        )


@dataclass(kw_only=True)
class LoHa(PeftAdapter):
    """W + alpha / rank · (w1_a w1_b) ⊙ (w2_a w2_b), of rank up to rank² (Hyeon-Woo et al. 2021, arXiv 2108.06098)."""

    rank: int
    alpha: float
    convolutions: bool  # whether the kernels of convolutions have factors of their own (Tucker)
    rank_pattern: Mapping[str, int] | None = None  # other ranks of layers, by the ends of their names
    alpha_pattern: Mapping[str, float] | None = None  # other alphas; by default alpha / rank stays the same

    kind = "loha"

    def __post_init__(self) -> None:
        check_ranks(self.rank, self.alpha, self.patterns)
        super().__post_init__()

    @property
    def patterns(self) -> dict[str, Mapping[str, float]]:
        return {"rank_pattern": self.rank_pattern or {}, "alpha_pattern": self.alpha_pattern or {}}

    def config(self, layers: Sequence[str]) -> Any:
        from peft import LoHaConfig

        return LoHaConfig(**_ranks(self, layers), rank_dropout=self.dropout, use_effective_conv2d=self.convolutions)


def _ranks(adapter: LoKr | LoHa, layers: Sequence[str]) -> dict[str, Any]:
    ranks, alphas = ranked(adapter.rank, adapter.alpha, adapter.rank_pattern, adapter.alpha_pattern)
    usual = {"r": adapter.rank, "alpha": adapter.alpha, "target_modules": list(layers)}
    return {**usual, "rank_pattern": fitting(ranks, layers), "alpha_pattern": fitting(alphas, layers)}
