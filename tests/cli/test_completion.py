"""Completion in a real shell: the script is loaded, and its function called as the shell calls it at TAB."""

import os
import shutil
import stat
import subprocess
import sys

import pytest

from t2i.cli.commands import COMMANDS
from t2i.cli.completion import script
from t2i.config import ConfigError

BASH = """
eval "$(t2i --completion bash)"
COMP_LINE="$1"
COMP_POINT=${#1}
COMP_WORDS=($1)
[[ "$1" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
compopt() { :; }
$(complete -p t2i | grep -o '_t2i') && printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def complete(tmp_path):
    """The words that bash offers at the end of a line."""
    program = tmp_path / "t2i"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m t2i "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def complete(line: str) -> list[str]:
        shown = subprocess.run(["bash", "-c", BASH, "bash", line], capture_output=True, text=True, env=environment)
        assert shown.stderr == ""
        return shown.stdout.split()

    return complete


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("t2i tr", ["train", "translate"]),
        ("t2i train loss=mi", ["minsnr"]),  # bash completes what follows the =
        ("t2i train optim", ["optimizer.", "optimizer="]),
        ("t2i train loss=edm loss.si", ["loss.sigma_data="]),
        ("t2i check -m loss=de", ["debiased"]),
        ("t2i compare --ba", ["--baseline"]),
        ("t2i train --config-d", ["--config-dir"]),
        ("t2i compare mul", []),  # bash falls back to the names of files
    ],
)
def test_bash_completes(line, words, complete):
    assert complete(line) == words


def test_all_commands_are_offered(complete):
    assert complete("t2i ") == list(COMMANDS)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_a_script_without_gaps(shell):
    text = script(shell)
    assert "@" not in text.replace("[@]", "").replace("{@}", "")
    assert all(name in text for name in COMMANDS)
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_another_shell_is_refused():
    with pytest.raises(ConfigError, match=r"^--completion tcsh: choose from bash, zsh, fish$"):
        script("tcsh")
