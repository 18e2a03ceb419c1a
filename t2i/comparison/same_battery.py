"""Whether runs were measured by the same battery; those that were not can't be compared."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from t2i.comparison.results import Result
from t2i.config import ConfigError

BATTERY = {  # field of run.json -> what a difference means, and which settings make it
    "on": ("some on images that they are trained on, others on held-out ones", "validation.images"),
    "folds": ("on folds of different images, or some without folds", "dataset and validation.folds"),
    "autoencoder": ("in the latents of different autoencoders", "model.path and model.vae"),
    "images": ("on different held-out images", "dataset and validation.items"),
    "log_snr": ("at different noise levels", "validation.log_snr and validation.timesteps"),
    "seed": ("with different noise", "validation.seed"),
}
OF_ONE_FOLD = ("hash", "images", "items", "fold")  # the fields that differ between the folds of a data set


def other_shapes(results: Sequence[Result]) -> dict[Result, str]:
    """The runs whose errors are not as many as those of most runs of the same battery, and why they are left out."""
    shapes = {result: (_hash(result), result.errors[result.battery].shape) for result in results}
    usual = {battery: shape for (battery, shape), _ in reversed(Counter(shapes.values()).most_common())}
    return {
        result: f"its errors are {shape[0]} × {shape[1]} instead of {usual[battery][0]} × {usual[battery][1]}; "
        f"{result.validations[result.step or 0]} was not written by this run"
        for result, (battery, shape) in shapes.items()
        if shape != usual[battery]
    }


def _hash(result: Result) -> str | None:
    return result.info.get("battery", {}).get("hash")


def _battery(result: Result) -> str | None:
    """The same for runs that can be compared: the battery's hash; of a fold, what all folds have in common."""
    facts = result.info.get("battery", {})
    if result.fold is None:
        return _hash(result)
    return repr(sorted((key, str(value)) for key, value in facts.items() if key not in OF_ONE_FOLD))


def share(results: Sequence[Result], prefix: str) -> bool:
    """Whether all runs have these errors, measured on the same images: those of the first battery are known to be."""
    if not all(prefix in result.errors for result in results):
        return False
    if prefix.removesuffix("ema/") == results[0].battery:
        return True
    field = "reference_battery" if prefix.startswith("ref/") else "train_battery"
    by_fold = defaultdict(set)
    for result in results:
        facts = result.info.get(field)
        own_hash = facts.get("hash") if isinstance(facts, dict) else None
        by_fold[None if prefix.startswith("ref/") else result.fold].add((own_hash, result.errors[prefix].shape))
    return all(len(batteries) == 1 for batteries in by_fold.values())


def refuse_other_batteries(results: Sequence[Result]) -> None:
    """Raise ConfigError unless the runs were measured by one battery, or each by that of its fold."""
    groups, of_fold = defaultdict(list), defaultdict(set)
    for result in results:
        groups[_battery(result)].append(result)
        of_fold[result.fold].add(_hash(result))
    if len(groups) > 1:
        listed = "".join(
            f"\n  battery {str(_hash(runs[0]))[:8]}: {', '.join(run.name for run in runs)}" for runs in groups.values()
        )
        reason, remedy = _why_other_batteries([runs[0] for runs in groups.values()])
        raise ConfigError(
            f"the runs were validated {reason}, so their errors can't be compared; pass the folders of one battery "
            f"only, or {remedy}{listed}"
        )
    if different := sorted(fold for fold, hashes in of_fold.items() if len(hashes) > 1 and fold is not None):
        raise ConfigError(
            f"fold {different[0]} consists of different images in different runs; train again with the same dataset "
            "settings and validation.items"
        )


def _why_other_batteries(results: Sequence[Result]) -> tuple[str, str]:
    """In what the batteries of these runs differ, and which runs could be compared."""
    batteries = [result.info.get("battery", {}) for result in results]
    for key in ("on", "folds"):  # then the images differ, too
        if len({str(battery.get(key)) for battery in batteries}) > 1:
            reason, setting = BATTERY[key]
            return reason, f"train again with the same {setting}"
    fixed = ["log_snr" in battery for battery in batteries]
    if any(fixed) and not all(fixed):
        return (
            "at different noise levels, some at timesteps of their own schedule as t2i 0.1 did",
            "train again: the earlier runs, or the later ones with validation.log_snr=null",
        )
    if not any(fixed):
        return (
            "on different held-out images, timesteps, noise or noise schedules",
            "train again with the same dataset, model.path, scheduler and validation",
        )
    differ = [key for key in BATTERY if len({str(battery.get(key)) for battery in batteries}) > 1]
    reasons, remedies = zip(*(BATTERY[key] for key in differ), strict=True) if differ else ((), ())
    return (
        " and ".join(reasons) or "on different batteries",
        f"train again with the same {', '.join(remedies) or 'validation'}",
    )
