"""The training commands of Diffusers' README files, translated, composed, and trained for two steps on stand-ins."""

import shlex
from functools import cache

import numpy as np
import pytest
from helpers import families, image_folders
from helpers.diffusers_readmes import EXAMPLES

from t2i.config.checks import check, check_types
from t2i.config.compose import compose, compose_defaults
from t2i.runs.folder import Run
from t2i.translate.shell import read_text
from t2i.translate.translation import translate

SIMILAR = {  # to others: they run where time is not limited
    *("text_to_image, own files", "text_to_image, several GPUs", "text_to_image LoRA SDXL, DeepSpeed"),
    *("dreambooth, 16 GB", "dreambooth, 8 GB", "dreambooth, text encoder"),
}


@cache
def words(name: str) -> list[str]:
    """The overrides of the translated command, as a shell passes them on."""
    command = "".join(
        line.removesuffix("\\") for line in translate(read_text(EXAMPLES[name], {})).text().split("\n\n")[:1]
    )
    split = shlex.split(command.replace("\\\n", ""))
    return split[2:] if split[:2] == ["t2i", "train"] else split[split.index("t2i.train") + 1 :]


@pytest.fixture(scope="session")
def base(layout, tmp_path_factory):
    """The folder of a small pipeline in the layout that a model's option names."""
    save = cache(lambda name: families.save(name, tmp_path_factory.mktemp("families") / name))
    return lambda option: save(option) if option in families.PIPELINES else layout(option)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """24 images: in a folder of image files, and as a data set of the Hub has them."""
    root = tmp_path_factory.mktemp("images")
    for name in ("folder", "hub"):
        (root / name).mkdir()
    image_folders.as_txt(root / "folder")
    image_folders.as_embedded_parquet(root / "hub")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in SIMILAR else ()) for name in EXAMPLES]
)
def test_an_example_of_a_readme_composes_and_trains(name, base, images, tmp_path):
    """Everything as translated, but for files, sizes, what needs a GPU or the Hub, and how long it takes."""
    from t2i.experiment.plan import make_plan
    from t2i.experiment.run import run

    cfg = compose(words(name))
    check_types(cfg, compose_defaults(words(name)))
    check(cfg, num_processes=1)
    chosen = dict(word.split("=", 1) for word in words(name) if not word.startswith("+"))
    small = [f"model.path={base(chosen['model'])}", "steps=2"]
    if chosen["dataset"] != "sources":
        small.append(f"dataset.path={images / chosen['dataset']}")
    small += ["dataset.resolution=64", "precision=fp32", "attention=auto", "hub.push=false", "tracker=none"]
    small += ["samples.steps=1", "sample_every=2", "validation.items=2", "validation.timesteps=2"]
    small += ["micro_batch_size=1", f"cache_dir={tmp_path / 'cache'}"]
    if "model.vae" in chosen:
        small.append(f"model.vae={base(chosen['model']) / 'vae'}")
    small += ["samples.size=64"] if chosen["model"] in families.PIPELINES else []
    of_sources = [word.replace("path-to-instance-images", str(images / "folder")) for word in words(name)]
    overrides = [*(word.replace("class_images:200", "class_images:3") for word in of_sources), *small]
    cfg = compose([word for word in overrides if not word.startswith("tracker.")])
    run(cfg, make_plan(cfg), tmp_path / "run", overrides)
    trained = Run(tmp_path / "run", cfg)
    assert trained.finished
    assert trained.latest()["step"] == 2
    assert np.isfinite(trained.result)
