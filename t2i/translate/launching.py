"""What starts the translated command: t2i itself, or the launcher of several processes."""

import re
from collections.abc import Callable

from t2i.translate.arguments import Arguments

ACCELERATE = ["accelerate", "launch"]
PLAIN = ("accelerate", "launch", "python", "python3")  # words without a meaning for one process
KNOWN = ("--mixed_precision", "--dynamo_backend", "--num_processes", "--nproc_per_node")  # which become settings


def program(args: Arguments, note: Callable[[str], None]) -> list[str]:
    """The words before the overrides: variables that are set for the command, and what starts it."""
    variables = [word for word in args.launcher if re.match(r"[A-Za-z_]\w*=", word)]
    launcher = args.launcher[len(variables) :]
    if not _is_several(args):
        left = [word for word in _without(launcher, KNOWN) if word not in PLAIN]
        if left:
            note(f"launcher: {' '.join(left)} is left out, as one process needs none")
        return [*variables, "t2i", "train"]
    if args.launched_with("num_processes") is None and args.launched_with("nproc_per_node") is None:
        note(
            "processes: the command does not say how many there are; batch_size is for one, so multiply it by their "
            "number (and optimizer.lr, if --scale_lr is given)"
        )
    if launcher[:2] == ACCELERATE:
        launcher = _without(launcher, KNOWN[:2])
    return [*variables, *launcher, "-m", "t2i.train"]


def _is_several(args: Arguments) -> bool:
    """Whether there are several processes, or a file that may say so."""
    return args.processes > 1 or "--multi_gpu" in args.launcher or args.launched_with("config_file") is not None


def _without(words: list[str], options: tuple[str, ...]) -> list[str]:
    """The words without these options and their values."""
    kept, skips = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if not skips and name not in options:
            kept.append(word)
        skips = not skips and name in options and not equals
    return kept
