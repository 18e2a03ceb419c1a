"""Folders of configurations besides conf/: what their files may not set is refused before Hydra acts on it.

Hydra instantiates callbacks, configures logging, sets environment variables and creates the run's folder before `main`
is called. So what files outside of conf/ do to the `hydra:` node is found out by composing it with and without them,
which executes nothing.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from t2i.config import CONF, PACKAGE, ConfigError
from t2i.config.compose import composed, search_path
from t2i.config.keys import belongs, flat

# Hydra itself writes these while it composes, after all files; overrides are compared with what was typed.
WRITTEN_BY_HYDRA = (
    *("runtime.config_sources", "runtime.choices", "overrides.hydra", "overrides.task", "searchpath"),
    *("job.override_dirname", "job.config_name"),
)


def check_foreign_files(arguments: Sequence[str]) -> None:
    """Refuse a command line on which a file outside of conf/ sets what only conf/ and the command line may set."""
    options = get_args_parser().parse_args(list(arguments))
    if options.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun would execute a pickle; give the settings of the run instead")
    if options.config_path is not None and Path(PACKAGE, options.config_path).resolve() != CONF.resolve():
        raise ConfigError(f"--config-path={options.config_path} would replace t2i's conf/; use --config-dir")
    if options.config_name not in (None, "config"):
        raise ConfigError(
            f"--config-name={options.config_name} would replace t2i's config.yaml; put the settings into an experiment "
            "file, and use --config-dir and experiment="
        )
    try:
        overrides = OverridesParser.create().parse_overrides(options.overrides)
    except OverrideParseException:
        return  # Hydra refuses it, too, and explains it
    if folders := _folders(options.config_dir, overrides):
        for job in _jobs(overrides, folders):
            _check_job(job, folders)


def _folders(config_dir: str | None, overrides: Sequence[Override]) -> list[str]:
    """The search path besides conf/, as --config-dir and hydra.searchpath give it."""
    folders = [f"file://{Path(config_dir).absolute()}"] if config_dir is not None else []
    for override in overrides:
        if override.key_or_group == "hydra.searchpath":
            value = override.value()
            return folders + ([str(folder) for folder in value] if isinstance(value, list) else [str(value)])
    return folders


def _jobs(overrides: Sequence[Override], folders: Sequence[str]) -> Iterator[list[str]]:
    """The combinations of options that the command line names; lists of values of other settings are left out."""
    values: list[list[str]] = []
    for override in overrides:
        text = str(override.input_line)
        if not override.is_sweep_override():
            values.append([text])
        elif override.package is not None or _is_group(override.key_or_group, folders):
            if not override.is_choice_sweep():
                raise ConfigError(f"{text} can't be used with files outside of conf/; write the options out, as in a,b")
            values.append([f"{text.partition('=')[0]}={value}" for value in override.sweep_string_iterator()])
    yield from map(list, product(*values))


def _is_group(key: str, folders: Sequence[str]) -> bool:
    """Whether it is a group, or may be one in a package, into which this can't look."""
    roots = [CONF, *(Path(folder.removeprefix("file://")) for folder in folders)]
    return any((root / key).is_dir() for root in roots) or any(folder.startswith("pkg:") for folder in folders)


def _check_job(typed: Sequence[str], folders: Sequence[str]) -> None:
    source = ", ".join(folder.removeprefix("file://") for folder in folders)
    of_hydra = [text for text in typed if _is_hydra(text) and not text.lstrip("+~").startswith("hydra.searchpath")]
    tasks = [text for text in typed if not _is_hydra(text)]
    cfg = _compose([*tasks, *of_hydra, search_path(folders)])
    try:
        reference = _compose([*filter(None, map(_known_options, tasks)), *of_hydra])
    except HydraException as error:
        raise ConfigError(
            f"{', '.join(of_hydra) or 'hydra'}: launchers, sweepers and other parts of Hydra come from t2i's conf/ "
            f"only, not from {source}"
        ) from error
    _compare(_hydra_node(cfg), _hydra_node(reference), source)
    for name, given in (("task", tasks), ("hydra", [*of_hydra, search_path(folders)])):
        if OmegaConf.to_container(cfg.hydra.overrides[name]) != given:  # a sweep passes them on to its jobs
            raise ConfigError(f"{source}: hydra.overrides.{name} can't be set in a file; leave it out")
    _check_folder_names(cfg, tasks, source)
    typed_keys = {text.lstrip("+~").partition("=")[0] for text in tasks}
    for key in cfg.hydra.sweeper.get("params") or {}:
        if key not in typed_keys and _is_group(str(key), folders):
            raise ConfigError(
                f"hydra.sweeper.params.{key} can't choose options together with files outside of conf/ ({source}); "
                f"write {key}=... on the command line"
            )


def _compose(overrides: list[str]) -> DictConfig:
    try:
        return composed(overrides, return_hydra_config=True)
    except KeyError as error:  # of hydra.job.env_copy
        raise ConfigError(f"the environment variable {error} is not set, which a configuration copies") from error


def _known_options(text: str) -> str | None:
    """An override that chooses options of conf/, or what is left of it; None if nothing is."""
    key, _, value = text.partition("=")
    group = key.lstrip("+~").partition("@")[0]
    if not (CONF / group).is_dir():
        return None
    chosen = [option for option in value.strip("[]").split(",") if (CONF / group / f"{option.strip()}.yaml").is_file()]
    if not chosen:
        return None
    return f"{key}=[{','.join(chosen)}]" if value.startswith("[") else f"{key}={chosen[0]}"


def _is_hydra(text: str) -> bool:
    key = text.lstrip("+~").partition("=")[0]
    return key == "hydra" or key.startswith(("hydra.", "hydra/"))


def _hydra_node(cfg: DictConfig) -> dict[str, Any]:
    """Hydra's own settings under flat keys, unresolved."""
    node = flat(OmegaConf.to_container(cfg.hydra))
    kept = {key: value for key, value in node.items() if not belongs(key, WRITTEN_BY_HYDRA)}
    choices = cfg.hydra.runtime.choices
    return kept | {f"runtime.choices.{key}": choices[key] for key in choices if str(key).startswith("hydra/")}


def _compare(node: dict[str, Any], reference: dict[str, Any], source: str) -> None:
    missing = object()
    for key in [*node, *reference]:
        if node.get(key, missing) != reference.get(key, missing):
            raise ConfigError(
                f"hydra.{key} is set by a file outside of t2i's conf/ ({source}); "
                "Hydra's own settings count in conf/ and on the command line only"
            )


def _check_folder_names(cfg: DictConfig, tasks: Sequence[str], source: str) -> None:
    """Refuse names of folders that lead out of multirun/, unless they were typed, or depend on other settings.

    Hydra resolves them again for the run and for each job of a sweep, where what they depend on may differ.
    """
    typed = {key.lstrip("+"): value for key, _, value in (text.partition("=") for text in tasks)}
    names = {f"the option of {group}": option for group, option in cfg.hydra.runtime.choices.items()}
    for key in ("run", "sweep"):
        if OmegaConf.is_interpolation(cfg, key) or "${" in typed.get(key, ""):
            raise ConfigError(f"{source}: {key} can't depend on other settings there; write the name of the folder out")
        if key not in typed:
            names[key] = cfg.get(key)
    for name, value in names.items():
        text = str(value)
        leads_out = text.startswith(("/", "~")) or ".." in text.replace("\\", "/").split("/")
        if leads_out or not text.isprintable():
            raise ConfigError(f"{source}: {name} leads out of multirun/ ({text!a}); name a folder inside of it")
