"""Which images the batteries consist of: the settings `validation.images`, `train_items`, `reference` and `folds`."""

from omegaconf import DictConfig

from t2i.config import ConfigError

IMAGES = ("held_out", "train")


def check_folds(cfg: DictConfig) -> None:
    """Refuse settings that contradict each other, or that the data set does not have."""
    images, folds, fold = cfg.validation.images, cfg.validation.folds, cfg.validation.fold
    if images not in IMAGES:
        raise ConfigError(f"validation.images={images} is not known; choose from {', '.join(IMAGES)}")
    if images == "train" and cfg.validation.train_items:
        raise ConfigError("validation.images=train measures training images already; use validation.train_items=0")
    reference = cfg.validation.reference
    if reference is not None and not isinstance(reference, str):
        raise ConfigError(
            f"validation.reference={reference} must be an option of dataset, a folder, a file of prompts, or null"
        )
    if folds is None:
        if fold is not None:
            raise ConfigError(f"validation.fold={fold} needs validation.folds, the number of parts")
        return
    if not isinstance(folds, int) or isinstance(folds, bool) or folds < 2:
        raise ConfigError(f"validation.folds={folds} must be a whole number, at least 2, or null")
    if not isinstance(fold, int) or isinstance(fold, bool) or not 0 <= fold < folds:
        parts = ",".join(map(str, range(folds))) if folds <= 10 else f"0,1,...,{folds - 1}"
        raise ConfigError(
            f"validation.fold={'null' if fold is None else fold} must be one of the {folds} parts, from 0 to "
            f"{folds - 1}; a sweep holds out each of them: -m validation.fold={parts}"
        )
    if images == "train":
        raise ConfigError(
            "validation.folds holds images out, and validation.images=train measures others; use held_out"
        )
    if "folds" not in cfg.dataset:
        raise ConfigError(
            f"validation.folds={folds}: this data set can't be divided into folds (dataset=folder and hub can); use "
            "validation.folds=null"
        )
