"""Adapters of peft other than LoRA: the names of their weights in files, and the settings that fit such weights.

Names and formulas of LoKr and LoHa are those of LyCORIS (lycoris/modules/lokr.py, loha.py), of ComfyUI
(comfy/weight_adapter/lokr.py, loha.py) and of peft. Those of OFT and BOFT are peft's: kohya's sd-scripts and LyCORIS
know other parametrisations of both (oft_blocks), which are not read or written.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

KERNELS = (1, 9, 25, 49)  # numbers of places in the kernels of convolutions


@dataclass(frozen=True)
class Factors:
    """The adapter of a layer, by the names that its weights have in files."""

    kind: "Kind"
    tensors: Mapping[str, Tensor]
    alpha: float | None = None  # None: as the rank, for no other effect than that of the weights

    @property
    def rank(self) -> int:
        return self.kind.rank(self.tensors)

    @property
    def scale(self) -> float:
        """What the adapter's effect is multiplied with."""
        if self.alpha is None or not self.kind.is_scaled(self.tensors):
            return 1.0
        return self.alpha / self.rank

    def without_alpha(self) -> "Factors":
        """The same effect at scale 1."""
        if self.scale == 1:
            return replace(self, alpha=None)
        first = next(name for name in self.kind.scaled if name in self.tensors)
        return replace(self, tensors={**self.tensors, first: self.tensors[first] * self.scale}, alpha=None)

    def in_diffusers(self) -> dict[str, Tensor]:
        return dict(self.without_alpha().tensors)

    def in_peft(self) -> dict[str, Tensor]:
        """By the names under which peft trains them."""
        return {_trained_name(name): tensor for name, tensor in self.tensors.items()}

    def put(self, module: Any) -> None:
        """Become the adapter of a layer of peft. Raises RuntimeError where that has another shape."""
        shape = module.get_base_layer().weight.shape
        for name in self.kind.weights:
            place, _, inner = name.partition(".")
            held = getattr(module, place)
            if inner:
                getattr(held["default"], inner).copy_(self.tensors[name])
            elif name in self.tensors:
                held["default"] = nn.Parameter(self.tensors[name].clone())
            elif "default" in held:
                del held["default"]
        if self.kind.scaled:
            module.scaling["default"] = self.scale
            module.alpha["default"] = self.rank if self.alpha is None else self.alpha
            if module.get_delta_weight("default").shape != shape:
                raise RuntimeError(f"its change is {list(module.get_delta_weight('default').shape)}, not {list(shape)}")


@dataclass(frozen=True)
class Kind:
    """A method of adaptation: what is to know of it to read its files, and to write them."""

    name: str  # as in adapter=NAME
    weights: tuple[str, ...]  # names under that of the layer, which has some of them
    layer: Callable[[], type]  # peft's class of an adapted layer
    config: Callable[[Mapping[str, Factors], float], Any]  # peft's settings for layers at scale 1, and the dropout
    rank: Callable[[Mapping[str, Tensor]], int] = lambda tensors: 1
    scaled: tuple[str, ...] = ()  # the weights, of which a layer has one, that alpha / rank can be multiplied into
    is_scaled: Callable[[Mapping[str, Tensor]], bool] = lambda tensors: True
    lycoris: str | None = field(default=None)  # what LyCORIS calls it, if its files have the same names

    def of(self, module: Any) -> Factors:
        """The adapter that a layer of peft has."""
        tensors = {}
        for name in self.weights:
            place, _, inner = name.partition(".")
            held = getattr(module, place)
            if "default" in held:
                weight = getattr(held["default"], inner) if inner else held["default"]
                tensors[name] = weight.detach()
        return Factors(self, tensors, float(module.alpha["default"]) if self.scaled else None)


def _trained_name(name: str) -> str:
    place, dot, inner = name.partition(".")
    return f"{place}.default{dot}{inner}"


def kind_of(weights: Iterable[str]) -> Kind | None:
    """The kind that has weights of these names."""
    names = set(weights)
    return next((kind for kind in KINDS if names & set(kind.weights)), None)


def _targets(layers: Mapping[str, Factors]) -> dict[str, Any]:
    """Ranks and names of the layers, for peft; the alphas are the ranks."""
    ranks = {name: layer.rank for name, layer in layers.items()}
    usual = max(ranks.values(), key=list(ranks.values()).count)
    others = {name: rank for name, rank in ranks.items() if rank != usual}
    ranked: dict[str, Any] = {"r": usual, "alpha": usual, "rank_pattern": others, "alpha_pattern": dict(others)}
    return {**ranked, "target_modules": sorted(layers)}


def _lokr_layer() -> type:
    from peft.tuners.lokr.layer import LoKrLayer

    return LoKrLayer


def _lokr_rank(tensors: Mapping[str, Tensor]) -> int:
    """Of two complete factors peft's smallest rank with which they are complete."""
    for name in ("lokr_w2_b", "lokr_w1_b"):
        if name in tensors:
            return tensors[name].shape[0]
    return max(tensors["lokr_w2"].shape[:2]) if "lokr_w2" in tensors else 1


def _lokr_config(layers: Mapping[str, Factors], dropout: float) -> Any:
    from peft import LoKrConfig

    names = {name for layer in layers.values() for name in layer.tensors}
    return LoKrConfig(
        **_targets(layers),
        rank_dropout=dropout,
        decompose_both="lokr_w1_a" in names,
        decompose_factor=_decompose_factor(layers),
        use_effective_conv2d="lokr_t2" in names,
    )


def _decompose_factor(layers: Mapping[str, Factors]) -> int:
    """The factor by which peft cuts all these layers as they are cut; -1, near the square root, if there is none."""
    from peft.tuners.lokr.layer import factorization

    cut = set()  # left size, and those that the right one may have: a kernel of a convolution is in its columns
    for layer in layers.values():
        w1, w2 = (_lokr_sizes(layer.tensors, part) for part in ("lokr_w1", "lokr_w2"))
        flat = "lokr_w2_b" in layer.tensors and "lokr_t2" not in layer.tensors
        columns = [w2[1] // kernel for kernel in (KERNELS if flat else (1,)) if w2[1] % kernel == 0]
        cut |= {(w1[0], (w2[0],)), (w1[1], tuple(columns))}

    def fits(factor: int) -> bool:
        return all(
            any(factorization(left * right, factor) == (left, right) for right in rights) for left, rights in cut
        )

    return next((factor for factor in [-1, *sorted({left for left, _ in cut})] if fits(factor)), -1)


def _lokr_sizes(tensors: Mapping[str, Tensor], part: str) -> tuple[int, int]:
    """Rows and columns of a factor, of which one may be a product."""
    if part in tensors:
        return tensors[part].shape[0], tensors[part].shape[1]
    rows, columns = tensors[f"{part}_a"], tensors[f"{part}_b"]
    return rows.shape[1] if "lokr_t2" in tensors and part == "lokr_w2" else rows.shape[0], columns.shape[1]


def _loha_layer() -> type:
    from peft.tuners.loha.layer import LoHaLayer

    return LoHaLayer


def _loha_config(layers: Mapping[str, Factors], dropout: float) -> Any:
    from peft import LoHaConfig

    effective = any("hada_t1" in layer.tensors for layer in layers.values())
    return LoHaConfig(**_targets(layers), rank_dropout=dropout, use_effective_conv2d=effective)


def _oft_layer() -> type:
    from peft.tuners.oft.layer import OFTLayer

    return OFTLayer


def _oft_config(layers: Mapping[str, Factors], dropout: float) -> Any:
    """A block of size b has b (b − 1) / 2 angles."""
    from peft import OFTConfig

    angles = next(iter(layers.values())).tensors["oft_R.weight"].shape[1]
    block = (1 + isqrt(1 + 8 * angles)) // 2
    settings: dict[str, Any] = {"target_modules": sorted(layers), "module_dropout": dropout}
    return OFTConfig(r=0, oft_block_size=block, use_cayley_neumann=False, **settings)


def _boft_layer() -> type:
    from peft.tuners.boft.layer import BOFTLayer

    return BOFTLayer


def _boft_config(layers: Mapping[str, Factors], dropout: float) -> Any:
    from peft import BOFTConfig

    have_butterflies()
    butterflies, _, block, _ = next(iter(layers.values())).tensors["boft_R"].shape
    settings: dict[str, Any] = {"target_modules": sorted(layers), "boft_dropout": dropout}
    return BOFTConfig(boft_block_size=block, boft_n_butterfly_factor=butterflies, **settings)


KINDS = (
    Kind(
        "lokr",
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
        _lokr_layer,
        _lokr_config,
        _lokr_rank,
        scaled=("lokr_w1", "lokr_w1_a"),
        is_scaled=lambda tensors: not {"lokr_w1", "lokr_w2"} <= tensors.keys(),  # complete factors have no rank
        lycoris="lokr",
    ),
    Kind(
        "loha",
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        _loha_layer,
        _loha_config,
        lambda tensors: tensors["hada_w1_b"].shape[0],
        scaled=("hada_w1_a",),
        lycoris="loha",
    ),
    Kind("oft", ("oft_R.weight",), _oft_layer, _oft_config),
    Kind("boft", ("boft_R", "boft_s"), _boft_layer, _boft_config),
)


class BlockDiagonal:
    """What peft's CUDA extension of BOFT computes, on any device: block-diagonal matrices.

    Without the extension, which has to be compiled, peft leaves out the butterflies: what is then trained is OFT.
    """

    @staticmethod
    def forward(blocks: Tensor) -> list[Tensor]:
        """[N, D, b, b] -> [N, D · b, D · b], in a list."""
        return [torch.stack([torch.block_diag(*of_one) for of_one in blocks])]

    @staticmethod
    def backward(gradient: Tensor, blocks: Tensor) -> list[Tensor]:
        size = blocks.shape[-1]
        count = blocks.shape[1]
        cut = gradient.reshape(len(gradient), count, size, count, size)
        return [torch.stack([cut[:, place, :, place] for place in range(count)], dim=1)]


def have_butterflies() -> None:
    """Let peft's BOFT have its butterflies without its CUDA extension."""
    from peft.tuners.boft import layer

    module: Any = layer
    module._FBD_CUDA = BlockDiagonal()
