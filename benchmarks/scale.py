"""The arithmetic of docs/scale.md: `python benchmarks/scale.py` prints its tables.

They follow from what is counted once for each published model, and kept in scale.json:

    python benchmarks/scale.py --count sdxl ...    # minutes for a large one; no weights are needed

Counted are the parameters, the operations of a forward pass and the activations of a training step, with tensors that
have shapes but no contents (see `t2i check --memory`). Everything else is a formula in this file. Nothing is measured.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

COUNTS = Path(__file__).with_name("scale.json")
GPUS = (8, 64, 512)
PEAK, UTILISATION = 989e12, 0.4  # dense bf16 operations per second of an H100 SXM, and the share that is reached
INSIDE, BETWEEN = 300e9, 40e9  # bytes per second and GPU: NVLink within a node of 8, 400 Gb/s InfiniBand between nodes
ROOM = 72e9  # bytes of an 80 GB GPU beside CUDA's context and fragmentation
# Bytes for each trained parameter: weights (alone on a GPU with a copy in bf16), gradients, AdamW's moments.
ALONE, BF16_SR, FLOAT32 = (6, 4, 8), (2, 2, 4), (4, 4, 8)
AVERAGE = 4  # bytes of a moving average of the weights for each trained parameter
SIZES = {"sd15": 512, "sd21": 768}  # pixels; all others 1024


@dataclass(frozen=True)
class Model:
    """What is counted of a model, for one image."""

    name: str
    size: int  # pixels
    parameters: int  # of the denoiser
    operations: float  # of a forward pass: two for each multiplication with its addition
    activations: float | None  # bytes of a step in bf16 with gradient checkpointing; None: not counted

    def held(self, each: tuple[int, int, int], gpus: int = 1) -> float:
        """Bytes of weights, gradients and moments, divided among so many GPUs."""
        return sum(each) * self.parameters / gpus

    @property
    def checkpoint(self) -> float:
        """Bytes of a checkpoint of complete training in bf16: float32 weights, moments, average."""
        return (4 + 8 + AVERAGE) * self.parameters

    @property
    def step_seconds(self) -> float:
        """Of one image on one GPU: a forward pass, once more for gradient checkpointing, and twice that backward."""
        return 4 * self.operations / (PEAK * UTILISATION)

    @property
    def home(self) -> str:
        """How it fits: the first that does, with the activations of one image."""
        activations = self.activations or 0
        for name, each in (("replicas", FLOAT32), ("replicas with `bf16_sr`", BF16_SR)):
            if self.held(each) + activations < ROOM:
                return name
        if FLOAT32[0] * self.parameters > ROOM:  # each process reads the complete network before it keeps its slice
            return "adapters"
        return next(f"FSDP on {gpus}" for gpus in GPUS if self.held(FLOAT32, gpus) + activations < ROOM)


def all_reduce(size: float, gpus: int) -> float:
    """Bytes that each GPU sends, and receives, to sum `size` bytes over all: a ring (Patarasuk and Yuan 2009)."""
    return 2 * (gpus - 1) / gpus * size


def gather(size: float, gpus: int) -> float:
    """Bytes that each GPU receives to complete `size` bytes of which all hold slices; a reduce-scatter sends them."""
    return (gpus - 1) / gpus * size


def sharded_traffic(parameters: float, gpus: int, micro_batches: int = 1) -> float:
    """Bytes of FSDP in a step: the float32 weights are gathered forward and backward, the gradients scattered."""
    return micro_batches * 3 * gather(4 * parameters, gpus)


def seconds(traffic: float, gpus: int) -> float:
    """The time of that traffic where nothing else happens meanwhile."""
    return traffic / (INSIDE if gpus <= GPUS[0] else BETWEEN)


def memory_table(models: list[Model]) -> str:
    head = ["Model", "pixels", "fits as", "B of P", "`bf16`, alone", "each replica", "`bf16_sr`", "FSDP, each of 8"]
    rows = [
        [
            *(model.name, str(model.size), model.home, f"{model.parameters / 1e9:.2f}"),
            *(gb(model.held(each)) for each in (ALONE, FLOAT32, BF16_SR)),
            *(gb(model.held(FLOAT32, 8)), "–" if model.activations is None else gb(model.activations)),
            gb(model.checkpoint),
        ]
        for model in models
    ]
    return table([*head, "activations", "checkpoint"], rows)


def network_table(models: list[Model]) -> str:
    kinds = [f"{kind}, {gpus}" for kind in ("replicas", "FSDP") for gpus in GPUS]
    rows = []
    for model in models:
        sizes = [all_reduce(4 * model.parameters, gpus) for gpus in GPUS]
        sizes += [sharded_traffic(model.parameters, gpus) for gpus in GPUS]
        cells = [f"{gb(size)} ({ms(seconds(size, gpus))})" for size, gpus in zip(sizes, 2 * GPUS, strict=True)]
        rows.append([model.name, f"{model.operations / 1e12:.2f}", ms(model.step_seconds), *cells])
    return table(["Model", "TFLOP forward", "ms per image", *kinds], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def ms(duration: float) -> str:
    return f"{duration * 1e3:.0f}"


def read_counts() -> list[Model]:
    return [Model(**counted) for counted in json.loads(COUNTS.read_text())]


def count(family: str, name: str, activations: bool) -> Model:
    """Count a published model's operations, and the activations of a step."""
    import torch
    from helpers import published
    from helpers.runs import compose
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from t2i.experiment.assembly import load_model
    from t2i.experiment.needs import autocast_on_cpu, full_length, needs
    from t2i.experiment.plan import make_plan
    from t2i.models.shapes import empty_parameters, shapes_only

    size = SIZES.get(family, 1024)
    common = [f"model={family}", f"dataset.resolution={size}", "micro_batch_size=1", "batch_size=4", "ema=none"]
    with tempfile.TemporaryDirectory() as folder:
        place = published.save(family, name, Path(folder) / "pipeline")
        common += [f"model.path={place}", "precision=bf16"]
        plain = compose(*common, "attention=sdpa")
        plan = make_plan(plain)
        with shapes_only() as mode, torch.no_grad():
            model = load_model(plain, plan, autocast_on_cpu(plan.precision))
            empty_parameters(model.denoiser, mode)
            with mode:
                pixels = torch.empty(1, 3, size, size)
            x, _ = model.encode(pixels)
            text = full_length(model.embed(["a caption"]))
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows plain products
                model.denoise(x, torch.zeros(1, dtype=torch.long), text)
            parameters = sum(weight.numel() for weight in model.denoiser.parameters())
        needed = None
        if activations:
            levels = ["checkpoint_levels=null"] if family in published.layouts.STOCK else []
            saving = compose(*common, "attention=sdpa", "gradient_checkpointing=true", *levels)
            needed = needs(saving, make_plan(saving)).activations
    return Model(name, size, parameters, float(counter.get_total_flops()), needed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", nargs="+", metavar="FAMILY", default=[], help="count these again")
    parser.add_argument("--no-activations", action="store_true", help="which take most of the time")
    options = parser.parse_args()
    if options.count:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
        from helpers import published

        known = {model.name: model for model in read_counts()} if COUNTS.exists() else {}
        for family in options.count:
            for name in published.DENOISERS[family]:
                known[name] = count(family, name, not options.no_activations)
                order = [each for names in published.DENOISERS.values() for each in names]
                models = sorted(known.values(), key=lambda model: order.index(model.name))
                COUNTS.write_text(json.dumps([asdict(model) for model in models], indent=1) + "\n")
                print(known[name], flush=True)
    models = read_counts()
    print(memory_table(models), network_table(models), sep="\n\n")


if __name__ == "__main__":
    main()
