"""Explains what Hydra refuses: our line, with what was probably meant, and Hydra's reason behind it."""

import re
import shlex
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf

from t2i.config import CONF, ConfigError
from t2i.config.compose import compose, groups
from t2i.config.keys import belongs, flat
from t2i.config.typed import OVERRIDE, quoted

ALIASES = {  # what other trainers call a setting -> what it is called here
    **dict.fromkeys(("lr", "learning_rate", "unet_lr"), "optimizer.lr"),
    **dict.fromkeys(("max_train_steps", "train_steps", "num_steps", "iterations", "num_train_steps"), "steps"),
    **dict.fromkeys(("train_batch_size", "batch"), "batch_size"),
    **dict.fromkeys(("output_dir", "out", "output", "output_name", "run_name"), "run"),
    **dict.fromkeys(("model", "pretrained_model_name_or_path", "base_model", "checkpoint"), "model.path"),
    **dict.fromkeys(("train_data_dir", "instance_data_dir", "data", "data_dir", "dataset_name"), "dataset.path"),
    **dict.fromkeys(("instance_prompt", "caption"), "dataset.caption"),
    **dict.fromkeys(("validation_prompt", "validation_prompts", "sample_prompts", "prompts"), "samples.prompts"),
    **dict.fromkeys(("rank", "network_dim", "lora_rank"), "adapter.rank"),
    **dict.fromkeys(("alpha", "network_alpha", "lora_alpha"), "adapter.alpha"),
    **dict.fromkeys(("mixed_precision", "dtype"), "precision.dtype"),
    **dict.fromkeys(("report_to", "log_with"), "tracker"),
    **dict.fromkeys(("checkpointing_steps", "save_steps"), "save_every"),
    **dict.fromkeys(("validation_steps", "eval_steps"), "validate_every"),
    **dict.fromkeys(("min_snr_gamma", "gamma"), "loss.snr_gamma"),
    **{
        "lr_warmup_steps": "lr_scheduler.num_warmup_steps",
        "size": "dataset.resolution",
        "guidance": "samples.guidance_scale",
    },
    **{"dataloader_num_workers": "num_workers", "image_column": "dataset.image_column", "random_flip": "dataset.flip"},
    **{"caption_column": "dataset.caption_column", "resolution": "dataset.resolution", "use_ema": "ema"},
    **{"project": "tracker.project", "proportion_empty_prompts": "caption_dropout"},
}


LAUNCHER = "hydra.launcher."
SHOWN_OR_SWEPT = {"-m", "--multirun", "hydra.mode", "-c", "--cfg", "-i", "--info", "-h", "--help", "--hydra-help"}


def explain(error: HydraException, arguments: Sequence[str]) -> str:
    """What to type instead, for an error that Hydra raised for these arguments, and Hydra's reason; in one line."""
    if isinstance(error, OverrideParseException):
        reason = re.sub(r"Error parsing override '.*'\n|\nSee https://.*", "", error.message).strip()
        several = re.findall(r"(?<!\S)[a-z][\w./]*=\S+", str(error.override))
        if len(several) > 1:
            return f"{error.override} can't be read ({reason}); type each setting by itself: {' and '.join(several)}"
        return f"{error.override} can't be read ({reason}); write KEY=VALUE{_in_quotes(str(error.override))}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return _missing_option(error.missing_cfg_file, sorted(error.options))
    refused = re.match(r"Could not override '(.+)'\.", str(error))
    unknown = misspelt(arguments)
    # Hydra goes on with where it searched, and with the key once more.
    reason = re.split("Config search path:|full_key:", f"{error} {error.__cause__ or ''}")[0]
    reason = " ".join(reason.removeprefix("t2i: ").split())
    if refused and refused[1] in unknown:
        values = {key: value for key, _, value in (argument.partition("=") for argument in arguments)}
        ours = (_unknown_key(key, nearest, values.get(key, "...")) for key, nearest in unknown.items())
        return f"{'; '.join(ours)} (Hydra: {reason})"
    return reason


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
    launchers = _launcher_options()
    of_launchers = [key for key, _ in given if key.startswith(LAUNCHER) and not belongs(key, launchers)]
    found = {key: nearest(key, known) for key in unknown}
    return found | {key: next(iter(get_close_matches(key, launchers, n=1)), None) for key in of_launchers}


def _launcher_options() -> list[str]:
    """The options of all launchers, such as hydra.launcher.n_jobs."""
    files = (CONF / "hydra" / "launcher").glob("**/*.yaml")
    return sorted({f"{LAUNCHER}{key}" for file in files for key in OmegaConf.load(file) if isinstance(key, str)})


def nearest(key: str, known: Collection[str]) -> str | None:
    """The setting that is called so elsewhere, or that ends so, or that is most similar."""
    if (alias := {_plain(other): meant for other, meant in ALIASES.items()}.get(_plain(key))) is not None:
        return alias
    if ends := sorted((name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]), key=len):
        if same := [name for name in ends if name.partition(".")[0] == key.partition(".")[0]]:
            return same[0]
        if "." not in key:
            return ends[0]
    table = key.rpartition(".")[0]
    if table in known:  # a setting of this table is meant, and not the table
        own = [name for name in known if name.startswith(f"{table}.") and name != key]
        return next((name for name in own if get_close_matches(key[len(table) :], [name[len(table) :]])), None)
    return _most_similar(key, known, cutoff=0.6)


def _most_similar(word: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """The most similar word, whatever its case, dashes and underscores."""
    plain = {_plain(other): other for other in sorted(known)}
    return next((plain[match] for match in get_close_matches(_plain(word), plain, n=1, cutoff=cutoff)), None)


def _plain(word: str) -> str:
    return re.sub(r"[-_ ]", "", word.casefold())


def refuse_flags(arguments: Sequence[str], known: Collection[str]) -> None:
    """Refuse options such as --steps 5, with the setting that is meant. known: the options that there are."""
    for place, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if not re.match(r"--?[a-zA-Z]", name) or name in known:
            continue
        if not value and place + 1 < len(arguments) and not re.match(r"-[a-zA-Z-]", arguments[place + 1]):
            value = arguments[place + 1]
        wanted = name.lstrip("-").replace("-", "_")
        settings = {key for leaf in flat(OmegaConf.to_container(compose([]))) for key in _with_parents(leaf)}
        meant = wanted if wanted in settings else nearest(wanted, settings)
        hint = f", here {shlex.quote('='.join((meant, value or 'true')))}" if meant else ""
        if wanted.startswith("resume"):
            hint = ", and a run goes on with the command that began it and run=NAME"
        raise ConfigError(f"{name} is not an option; settings are typed as KEY=VALUE{hint} (`t2i settings` lists them)")


def refuse_without_multirun(arguments: Sequence[str]) -> None:
    """Refuse a launcher or sweeper where there is no sweep: Hydra would pass over it."""
    several = SHOWN_OR_SWEPT & {argument.partition("=")[0] for argument in arguments}
    alone = [argument for argument in arguments if argument.startswith(("hydra/launcher=", "hydra/sweeper="))]
    if alone and not several:
        raise ConfigError(f"{alone[0]} is for sweeps; add -m, as in: t2i train -m {shlex.join(arguments)}")


def _unknown_key(key: str, meant: str | None, value: str) -> str:
    group, _, name = key.partition(".")
    if group in groups() and (options := _options_with(group, name)):
        chosen = f"{group}={options[0]} {key}={value}"
        return f"{key} is not a setting of the option that is chosen; {group}={', '.join(options)} have it: {chosen}"
    table = key.rpartition(".")[0]
    listed = f"`t2i settings {table}.` lists those of {table}" if table else "`t2i settings` lists them all"
    hint = f"did you mean {meant}?" if meant else listed
    typed = f"; type {meant}={value}" if meant else ""
    return f"{key} is not a setting; {hint} (+{key}=... would add it){typed}"


def _options_with(group: str, setting: str) -> list[str]:
    """The options of a group that have a setting of their own by this name."""
    found = []
    for file in sorted((CONF / group).glob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        for shared in re.findall(r"- (shared/\w+)@_here_", text):
            text += (CONF / group / f"{shared}.yaml").read_text(encoding="utf-8")
        if re.search(rf"^{re.escape(setting)}:", text, re.MULTILINE):
            found.append(file.stem)
    return sorted(found, key=lambda option: option not in ("folder", "lora"))  # the usual ones first


def _in_quotes(argument: str) -> str:
    """How a value with blanks, brackets or accents is typed."""
    if (override := OVERRIDE.fullmatch(argument)) is None:
        return ", in quotes if it has spaces or brackets"
    text = override[1] + quoted(override[3].strip(), '"')
    return f", in quotes if it has spaces or brackets: {shlex.quote(text)}"


def _missing_option(file: str, options: Sequence[str]) -> str:
    group, _, name = file.rpartition("/")
    similar = _most_similar(name, options)
    hint = f"did you mean {similar}? Choose" if similar else "choose"
    return f"{group}={name} is not an option; {hint} from {', '.join(options)}"


def _with_parents(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
