"""How many optimizer steps an epoch of a script has, which depends on the number of images."""

import math
from pathlib import Path

from t2i.translate.arguments import Arguments

IMAGES = {  # data sets that the documentation of the scripts uses -> their images
    "lambdalabs/naruto-blip-captions": 1221,
    "lambdalabs/pokemon-blip-captions": 833,
    "diffusers/dog-example": 5,
    "Norod78/Yarn-art-style": 20,
}


def steps_per_epoch(args: Arguments) -> int | None:
    """Optimizer steps of an epoch of the script; None if the number of images is not known."""
    images = args.images or IMAGES.get(args["dataset_name"] or "") or _count(args)
    if images is None:
        return None
    images = min(images, args["max_train_samples"] or images) * (args["repeats"] or 1)
    if args["with_prior_preservation"]:
        images = max(images, args["num_class_images"])
    batches = math.ceil(images / (args["train_batch_size"] * args.processes))
    return math.ceil(batches / args["gradient_accumulation_steps"])


def _count(args: Arguments) -> int | None:
    """Images in a folder on this machine: DreamBooth's scripts don't read the folders in it, the others do."""
    name = args["instance_data_dir"] or args["train_data_dir"]
    pattern = "*" if args.script.dreambooth else "**/*"
    return images_in(name, pattern) or None if name else None


def images_in(folder: str, pattern: str) -> int:
    """How many images a folder on this machine holds; none if there is no such folder."""
    from t2i.data.images import SUFFIXES

    return sum(file.suffix.lower() in SUFFIXES for file in Path(folder).expanduser().glob(pattern))
