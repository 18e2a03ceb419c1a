"""Pipelines in the sizes of published ones, with random weights: a step takes as long with any.

    python benchmarks/random_pipelines.py FAMILY FOLDER

The parts are as published (tests/helpers/published.py has their settings), but for text encoders: those that the loop
of reference.py does not run have one layer, as captions are encoded before anything is timed. What is there stays.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

REFERENCE = ("sd15",)  # families that reference.py trains
DEPTHS = ("num_hidden_layers", "num_layers")  # names of the number of layers of a text encoder
SCALE = 0.02  # of the weights


def save(family: str, name: str, folder: Path) -> Path:
    """Write the pipeline whose denoiser is called `name` in tests/fixtures/denoisers.json."""
    from helpers import published

    if (folder / "complete").is_file():
        return folder
    published.save(family, name, folder)
    index = json.loads((folder / "model_index.json").read_text())
    for part, (library, kind) in ((key, value) for key, value in index.items() if isinstance(value, list)):
        if (folder / part / "config.json").is_file():
            print(f"{folder / part}: {kind}", file=sys.stderr, flush=True)
            _network(library, kind, folder / part, shallow=family not in REFERENCE).save_pretrained(folder / part)
    (folder / "complete").touch()
    return folder


def _network(library: str, kind: str, folder: Path, shallow: bool = True) -> Any:
    """shallow: whether a text encoder has one layer."""
    import diffusers
    import torch
    import transformers
    from accelerate import init_empty_weights

    if library == "diffusers":
        classes: Any = getattr(diffusers, kind)
        with init_empty_weights():
            network = classes.from_config(classes.load_config(folder))
    else:
        classes = getattr(transformers, kind)
        config = classes.config_class.from_pretrained(folder)
        for depth in DEPTHS if shallow else ():
            if hasattr(config, depth):
                setattr(config, depth, 1)
        with init_empty_weights():
            network = classes(config)
    network.to_empty(device="cpu").to(torch.float16)
    random = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).to(torch.float16) * SCALE
    for key, tensor in network.state_dict(keep_vars=True).items():
        if tensor.is_floating_point():
            _fill(tensor.data, random, norm=tensor.ndim < 2 and key.endswith("weight"))
    return network


def _fill(tensor: Any, random: Any, norm: bool) -> None:
    """norm: whether it scales what is normalised, and not random numbers but ones."""
    if norm:
        tensor.fill_(1)
        return
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), random.numel()):
        part = flat[start : start + random.numel()]
        part.copy_(random[: part.numel()])


def main() -> None:
    from helpers import published

    family, folder = sys.argv[1:]
    save(family, next(iter(published.DENOISERS[family])), Path(folder))


if __name__ == "__main__":
    main()
