"""From a command of Diffusers' scripts to a command of t2i that trains the same, as far as t2i can."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from t2i.config import ConfigError
from t2i.config.compose import compose, compose_defaults, groups
from t2i.config.keys import flat
from t2i.config.secrets import redact
from t2i.runs.text import printable, printable_lines
from t2i.translate import writing
from t2i.translate.arguments import Arguments, default_of, parse
from t2i.translate.launching import program
from t2i.translate.rules import SUBJECTS
from t2i.translate.scripts import SCRIPTS
from t2i.translate.shell import Command
from t2i.translate.tables import DIFFERENT, SAME, UNUSED

CHOOSING = ("model=", "dataset=")  # options that choose others
SHOWN = (  # also where they are the default
    *("model", "model.path", "dataset", "steps", "batch_size", "micro_batch_size"),
    *("optimizer.lr", "loss", "precision"),
)
OF_PRODIGY = ("optimizer.eps", "optimizer.beta3", "optimizer.decouple")  # whose defaults are those of the package
WITHOUT_EFFECT = "together with the other flags, it changes nothing"


@dataclass(frozen=True)
class Translation:
    """settings: what the command sets, complete: with the defaults of the script."""

    settings: dict[str, Any]
    program: list[str]  # t2i train, or a launcher of several processes and -m t2i.train; before it variables
    differs: list[str]  # a line for each thing that t2i does otherwise
    unused: dict[str, str]  # flag that was given -> why it has no meaning
    unknown: list[str]  # lines about words that the script does not know

    def overrides(self) -> dict[str, Any]:
        """The settings that are not the defaults of t2i and of the chosen options already, and the important ones."""
        from omegaconf import OmegaConf

        options = {key: value for key, value in self.settings.items() if key in groups()}
        chosen = [f"{key}={value}" for key, value in options.items()]
        first = compose([word for word in chosen if word.startswith(CHOOSING)], return_hydra_config=True)
        defaults = flat(OmegaConf.to_container(compose_defaults(chosen))) | dict(first.hydra.runtime.choices)
        kept = {k: value for k, value in self.settings.items() if k in SHOWN or defaults.get(k, ...) != value}
        return {key if key in defaults else f"+{key}": value for key, value in kept.items()}

    def text(self) -> str:
        """The command, and the rest as comments of the shell.

        The script may be anybody's: what is pasted runs nothing of it, and holds no password of the environment.
        """
        command = redact(writing.command(self.program, self.overrides()))
        if printable_lines(command) != command:
            raise ConfigError(f"the command holds control characters, which a terminal would obey: {command!a}")
        unused = [f"--{flag}: {why}" for flag, why in self.unused.items()]
        about = {
            "Not understood": self.unknown,
            "What differs": self.differs,
            "Flags without a meaning here": unused,
        }
        for title, lines in about.items():
            if lines:
                command += "".join(["\n\n# ", title, ":", *(f"\n# - {printable(redact(line))}" for line in lines)])
        return command


def translate(command: Command, images: int | None = None) -> Translation:
    """images: in the data set, for epochs. Raises ConfigError for what the script refuses, or t2i can't compute."""
    args = parse(SCRIPTS[command.script], command.arguments, command.launcher, images)
    differs: list[str] = []
    settings = _settings(args, differs)
    start = program(args, differs.append)
    given = list(args.values)
    differs += [f"--{flag}: {DIFFERENT[flag]}" for flag in given if flag in DIFFERENT]
    differs.append("draws: noise, timesteps and the order of the images are other ones, also with the same seed")
    unused = {flag: UNUSED[flag] for flag in given if flag in UNUSED}
    unused |= {flag: WITHOUT_EFFECT for flag in given if flag not in DIFFERENT and _is_idle(flag, args)}
    return Translation(settings, start, differs, unused, _unknown(args))


def _settings(args: Arguments, differs: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for subject in SUBJECTS:
        settings |= subject(args, differs.append)
    return _ordered(settings | _same(args, settings))


def _is_idle(flag: str, args: Arguments) -> bool:
    """Whether a flag that means something changes no setting and no line here, as --lr_power of a constant schedule."""
    if flag in UNUSED or args[flag] == default_of(args.script, flag):
        return False
    others = {name: value for name, value in args.values.items() if name != flag}
    lines: tuple[list[str], list[str]] = ([], [])
    try:
        same = _settings(args, lines[0]) == _settings(replace(args, values=others), lines[1])
    except ConfigError:
        return False  # it is needed
    return same and lines[0] == lines[1]


def _same(args: Arguments, computed: dict[str, Any]) -> dict[str, Any]:
    """Settings that take the value of a flag, for flags that the script has and whose setting the options have."""
    settings = {}
    for flag, setting in SAME.items():
        value = args[flag]
        if flag not in args.script.flags or value is None:
            continue
        if setting == "sample_every" and "samples.prompts" not in computed:
            continue
        if computed["optimizer"] == "prodigy" and setting in OF_PRODIGY and not args.given(flag):
            continue
        if _has(setting, computed):
            settings[setting] = value
    return settings


def _has(setting: str, computed: dict[str, Any]) -> bool:
    """Whether the chosen option of a group has the setting, which is the flag's only for that option."""
    group, _, name = setting.partition(".")
    match group:
        case "timesteps":
            return name in {
                "biased": ("multiplier", "portion", "begin", "end"),
                "logit_normal": ("std",),
                "mode": ("scale",),
            }.get(computed["timesteps"], ())
        case "optimizer":
            return name in ("weight_decay", "eps") or computed["optimizer"] == "prodigy"
        case "adapter":
            return computed["adapter"] != "none"
        case "tracker":
            return computed["tracker"] in ("wandb", "trackio")
        case "dataset":
            of_hub = name in ("name", "image_column")  # of several sources, each has its own
            return not of_hub or computed["dataset"] == "hub"
    return True


def _unknown(args: Arguments) -> list[str]:
    lines = []
    for word in args.unknown:
        if not word.startswith("--"):
            lines.append(f"{word}: no flag takes it")
            continue
        name = word[2:].partition("=")[0]
        elsewhere = [script.name for script in SCRIPTS.values() if name in script.flags]
        near = get_close_matches(name, args.script.flags, n=2)
        hint = f"; {', '.join(elsewhere)} have it" if elsewhere else ""
        hint = f"; did you mean {' or '.join(f'--{flag}' for flag in near)}?" if near else hint
        lines.append(f"--{name}: {args.script.name} has no such flag{hint}")
    return lines


def _ordered(settings: dict[str, Any]) -> dict[str, Any]:
    """Each option in front of its settings, in the order of a run: model, data, how it is trained, what is kept."""
    order = ("model", "adapter", "dataset", "steps", "batch_size", "micro_batch_size", "optimizer", "lr_scheduler")
    order += ("loss", "scheduler", "timesteps", "ema", "precision")

    def place(key: str) -> tuple[int, str, int]:
        group = key.lstrip("+").partition(".")[0]
        return (order.index(group) if group in order else len(order), group, key != group)

    return dict(sorted(settings.items(), key=lambda entry: place(entry[0])))
