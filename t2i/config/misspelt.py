"""Explains in one line what Hydra refuses: the key or option that was probably meant, or else Hydra's reason."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from t2i.config import CONF
from t2i.config.compose import compose, groups
from t2i.config.keys import belongs, flat


def explain(error: HydraException, arguments: Sequence[str]) -> str:
    """One line on an error that Hydra raised for these arguments."""
    if isinstance(error, OverrideParseException):
        reason = re.sub(r"Error parsing override '.*'\n|\nSee https://.*", "", error.message).strip()
        return f"{error.override} can't be read ({reason}); write KEY=VALUE, in quotes if it has spaces or brackets"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _missing_option(error.missing_cfg_file, sorted(error.options))
    refused = re.match(r"Could not override '(.+)'\.", str(error))
    unknown = misspelt(arguments)
    if refused and refused[1] in unknown:
        return "; ".join(_unknown_key(key, nearest) for key, nearest in unknown.items())
    # Hydra goes on with where it searched, and with the key once more.
    reason = re.split("Config search path:|full_key:", f"{error} {error.__cause__ or ''}")[0]
    return " ".join(reason.removeprefix("t2i: ").split())


def misspelt(arguments: Sequence[str]) -> dict[str, str | None]:
    """The keys among Hydra's arguments that do not exist -> the most similar key, or None if none is similar."""
    given = [argument.partition("=")[::2] for argument in arguments if re.match(r"[\w.@/]+=", argument)]
    choices = {group: option for group, option in given if (CONF / group / f"{option}.yaml").is_file()}
    try:
        cfg = compose([f"{group}={option}" for group, option in choices.items()])
    except HydraException:  # the keys are not the mistake
        return {}
    known = groups() | {key for leaf in flat(OmegaConf.to_container(cfg)) for key in _with_parents(leaf)}
    elsewhere = [group for group, _ in given if group in groups() and group not in choices]  # options of --config-dir
    unknown = [key for key, _ in given if key not in known and not belongs(key, ["hydra", *elsewhere])]
    return {key: next(iter(get_close_matches(key, known, n=1, cutoff=0.5)), None) for key in unknown}


def _unknown_key(key: str, nearest: str | None) -> str:
    hint = f"did you mean {nearest}?" if nearest else "`t2i settings` lists them all"
    return f"{key} is not a setting; {hint} (+{key}=... would add it)"


def _missing_option(file: str, options: Sequence[str]) -> str:
    group, _, name = file.rpartition("/")
    nearest = get_close_matches(name, options, n=1)
    hint = f"did you mean {nearest[0]}? Choose" if nearest else "choose"
    return f"{group}={name} is not an option; {hint} from {', '.join(options)}"


def _with_parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
