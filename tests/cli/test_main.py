"""`t2i`: the table of commands, as it is typed."""

import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

import t2i
from t2i.cli.commands import COMMANDS
from t2i.cli.main import main, versions


def command(*arguments):
    """Run `python -m t2i`; returns the finished process."""
    return subprocess.run([sys.executable, "-m", "t2i", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_has_a_line_for_each_command(arguments):
    shown = command(*arguments)
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: t2i COMMAND ...\n")
    for name, row in COMMANDS.items():
        assert any(line.split() == [name, *row.summary.split()] for line in shown.stdout.splitlines())


def test_help_answers_at_once():
    """Neither Hydra nor PyTorch is imported; a bare Python takes a tenth of the time allowed here."""
    code = "import sys, t2i.cli.main as cli\ntry: cli.main([])\nexcept SystemExit: pass\nprint(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.splitlines()[-1]
    assert not {"torch", "hydra", "omegaconf", "numpy", "rich", "yaml"} & set(eval(loaded))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        command("--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.3


def test_version():
    shown = command("--version").stdout
    assert shown.startswith(f"t2i {t2i.__version__} (Python {sys.version.split()[0]}, torch ")


@pytest.mark.parametrize("name", ["sample", "compare", "settings", "data"])
def test_every_command_answers_with_the_version_of_t2i(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"{versions()}\n"


def test_train_answers_with_the_version_of_t2i_and_not_with_hydras():
    assert command("train", "--version").stdout == f"{versions()}\n"


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("trian", "no command 'trian'; did you mean train?"),
        ("--foo", "no command '--foo'; choose from data, train"),
        ("loss=mse", "no command 'loss=mse'; choose from data, train"),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(name, answer):
    refused = command(name)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"t2i: {answer}")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "train"])
def test_each_command_explains_itself(name):
    shown = command(name, "--help")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(f"usage: t2i {name} ")
    assert f"t2i {name}" in shown.stdout.partition("positional arguments:")[0].removeprefix(f"usage: t2i {name}")


@pytest.mark.parametrize("name", [pytest.param("train", marks=pytest.mark.slow), *sorted({*COMMANDS} - {"train"})])
def test_python_m_takes_the_module_of_each_command(name):
    assert find_spec(COMMANDS[name].module)
    direct = subprocess.run([sys.executable, "-m", COMMANDS[name].module, "--help"], capture_output=True, text=True)
    assert direct.stdout == command(name, "--help").stdout


@pytest.mark.slow
def test_hydra_explains_train():
    shown = command("train", "--help").stdout
    assert "t2i train loss=minsnr" in shown
    assert "== Configuration groups ==" in shown


@pytest.mark.slow
def test_train_is_hydras_program(tmp_path):
    """The name of the job, and so of its log, does not depend on how it was started."""
    for program in (["t2i", "train"], ["t2i.train"]):
        arguments = [sys.executable, "-m", *program, "--cfg", "hydra", "--package", "hydra.job"]
        shown = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
        assert "name: train\n" in shown.stdout, shown.stderr


@pytest.mark.parametrize("flags", [["--cfg", "job", "-m"], ["--resolve"]])
def test_hydras_flags_that_contradict_each_other_are_one_line(flags):
    refused = command("train", *flags)
    assert refused.returncode == 2
    assert refused.stderr.startswith("t2i: ")
    assert len(refused.stderr.splitlines()) == 1


def test_the_scripts_of_before_are_aliases(monkeypatch, capsys):
    from t2i.cli.main import alias

    monkeypatch.setattr(sys, "argv", ["/usr/bin/t2i-compare", "--help"])
    with pytest.raises(SystemExit) as end:
        alias()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("usage: t2i compare ")


def test_a_missing_argument_is_one_line():
    refused = command("compare")
    assert refused.returncode == 2
    assert refused.stderr == "t2i: the following arguments are required: PATH; see t2i compare --help\n"
