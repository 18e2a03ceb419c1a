"""Fill the encoding cache ahead of runs: `t2i encode [-m] OVERRIDES`, with the overrides of `t2i train`.

With -m, it encodes for each data set and model of the sweep. A run whose data set is encoded loads neither the
autoencoder nor the text encoder to train. Where encoding is the slow part, do it on a machine of its own.
"""

from typing import Any

from omegaconf import DictConfig

from t2i.cli.arguments import overrides_parser, parse_jobs
from t2i.cli.failing import run

GROUPS = ("dataset", "model", "adapter")  # on which the encodings depend


def main(arguments: list[str] | None = None) -> None:
    from t2i.config.compose import compose

    _, jobs = parse_jobs(overrides_parser("encode", __doc__, "dataset=naruto model=sd15"), arguments)
    configs = [compose(job.overrides) for job in jobs]
    different = {repr([*(cfg[group] for group in GROUPS), cfg.validation]): cfg for cfg in configs}
    from t2i.optim.numerics import numerics

    for cfg in different.values():
        with numerics(cfg.tf32, cfg.cudnn_benchmark, cfg.deterministic):
            fill(cfg)


def fill(cfg: DictConfig) -> None:
    """Encode the data set of a configuration, and print what is in the cache."""
    import logging

    import torch
    from accelerate import Accelerator

    from t2i.config.instantiate import build, check_signature, check_targets
    from t2i.config.reference import load_reference
    from t2i.data.filling import readable
    from t2i.data.latent_cache import encode
    from t2i.experiment.class_images import load_data

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    check_targets(cfg)
    for group in GROUPS:
        check_signature(cfg, group)
    data, model, adapter = load_data(cfg, Accelerator()), build(cfg, "model"), build(cfg, "adapter")
    if adapter.trains_text:
        model = adapter.attach(model)  # captions are cached as tokens
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    reference = load_reference(cfg)
    splits: dict[str, Any] = {"train": data.train, "validation": data.validation}
    splits |= {} if reference is None else {"reference": reference.validation}
    for name, split in splits.items():
        if not split.cached:
            print(f"{name}: streamed, so there is nothing to encode ahead")
            continue
        if not len(split):
            print(f"{name}: no images")
            continue
        encoded = encode(split, model, cfg.cache_dir)
        for content, entries in (("images", encoded.latents), ("captions", encoded.captions)):
            folder = entries.packs[0].file.parent
            stored = readable(sum(file.stat().st_size for file in folder.iterdir()))
            print(f"{name}: {len(entries):,} {content}, {readable(entries.nbytes())} of {stored} in {folder}")


if __name__ == "__main__":
    run(main)
