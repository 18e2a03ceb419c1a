"""Fill the encoding cache ahead of runs: `python -m t2i.encode [-m] OVERRIDES`, with the overrides of `t2i.train`.

With -m, for each data set and model among the jobs of the sweep. Runs that find all they need load neither autoencoder
nor text encoder to train; where the encoding is the slow part, this can be done on a machine of its own.
"""

import sys
from pathlib import Path

from t2i.config import ConfigError


def main(arguments: list[str] | None = None) -> None:
    from hydra.errors import HydraException

    from t2i.config.compose import asked, compose

    try:
        jobs = asked("t2i.encode", __doc__, "dataset=naruto model=sd15", arguments)
        configs = [compose([text for _, text in job]) for job in jobs]
        different = {repr([cfg[group] for group in ("dataset", "model", "adapter")]): cfg for cfg in configs}
        for cfg in different.values():
            fill(cfg)
    except (ConfigError, HydraException) as error:
        sys.exit(f"t2i.encode: {error}")


def fill(cfg) -> None:
    """Encode the data set of a configuration, and say what is in the cache."""
    import torch

    from t2i.config.instantiate import build, check_signature
    from t2i.data.latent_cache import encode, readable

    for group in ("dataset", "model", "adapter"):
        check_signature(cfg, group)
    data, model, adapter = (build(cfg, group) for group in ("dataset", "model", "adapter"))
    if adapter.text_encoder:
        model = adapter.attach(model)  # captions are kept as tokens
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for name, split in (("train", data.train), ("validation", data.validation)):
        if not split.cached:
            print(f"{name}: streamed, so that nothing of it is encoded ahead")
            continue
        encoded = encode(split, model, cfg.cache_dir)
        for what, rows in (("images", encoded.latents), ("captions", encoded.captions)):
            file = Path(rows.cache_files[0]["filename"])
            print(f"{name}: {len(rows)} {what}, {readable(file.stat().st_size)} in {file}")


if __name__ == "__main__":
    main()
