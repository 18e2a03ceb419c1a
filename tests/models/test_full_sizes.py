"""The networks of the families in their published sizes, built without weights."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from helpers import families
from helpers.runs import compose

PUBLISHED = json.loads((Path(__file__).parent.parent / "fixtures" / "transformers.json").read_text())
NAMES = [(family, name) for family in families.PIPELINES for name in PUBLISHED[family]]


@pytest.mark.parametrize(("family", "name"), NAMES, ids=[name for _, name in NAMES])
def test_size_adapted_layers_and_blocks(family, name):
    """The size is that of the file of weights, in which SD 3.5 keeps its positions, too."""
    published = PUBLISHED[family][name]
    with torch.device("meta"):
        network = getattr(diffusers, published["class"])(**published["config"])
    assert sum(value.numel() for value in network.state_dict().values()) == pytest.approx(published["parameters"], 0.02)

    linear = [name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    for ending in compose(f"model={family}", "adapter=lora").adapter.target_modules:
        assert any(name.endswith(f".{ending}") for name in linear), ending
    present = {type(module).__name__ for module in network.modules()}
    assert present.issuperset(families.BLOCKS[family])
    assert set(families.BLOCKS[family]) <= set(network._no_split_modules)
