"""`t2i settings`: what the YAML files say of themselves."""

import re
import subprocess
import sys

import pytest
from helpers.runs import compose
from omegaconf import OmegaConf

from t2i.cli.settings import main, markdown, read, search, settings, show
from t2i.config import CONF, ConfigError

FILES = sorted(CONF.rglob("*.yaml"))


def names(file):
    return str(file.relative_to(CONF))


@pytest.mark.parametrize("file", FILES, ids=names)
def test_every_setting_is_explained(file):
    same_elsewhere = re.compile(r"\$\{(\w+\.)*(\w+)\}")  # error: ${error}
    silent = [
        setting.key
        for setting in read(file)
        if not setting.comment
        and not ((match := same_elsewhere.fullmatch(setting.default)) and match[2] == setting.key.rpartition(".")[2])
    ]
    assert not silent, f"{names(file)}: without a comment: {', '.join(silent)}"


@pytest.mark.parametrize("file", [file for file in FILES if "wandb" not in file.parts], ids=names)
def test_every_file_says_what_it_is(file):
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
    assert re.match(r"# \S.{20}", lines[0])


def test_every_setting_and_option_is_listed():
    entries = {entry.key for entry in settings()}
    cfg = OmegaConf.to_container(compose())
    assert {key for key in cfg if not isinstance(cfg[key], dict)} <= entries
    assert {"loss.snr_gamma", "loss", "loss=minsnr", "validation.items", "hydra/launcher", "dataset.crop"} <= entries
    assert {f"loss={file.stem}" for file in CONF.glob("loss/*.yaml")} <= entries


def test_defaults_are_as_they_are_written():
    entries = {(entry.key, entry.file): entry for entry in settings()}
    assert entries["optimizer.lr", "model/tiny.yaml"].default == "1.0e-3"
    assert entries["optimizer.betas", "optimizer/adamw.yaml"].default == "[0.9, 0.999]"
    assert entries["cache_dir", "config.yaml"].default == '${oc.env:T2I_CACHE,"~/.cache/t2i"}'
    assert entries["loss", "config.yaml"].default == "minsnr"
    assert entries["loss", "config.yaml"].options["mse"].startswith("The plain error ")


@pytest.fixture
def conf(tmp_path, monkeypatch):
    monkeypatch.setattr("t2i.cli.settings.CONF", tmp_path)
    (tmp_path / "loss").mkdir()
    return tmp_path


def test_comments_are_found_after_above_and_around_a_setting(conf):
    file = conf / "loss" / "a.yaml"
    file.write_text(
        "# What it is.\n_target_: a.A\na: 1  # after\n# above\nb: '# no comment'\n# above,\nc: [1,\n  2]  # and after\n"
        "d: x#y\ntable:  # of all\n  e: 1\n  f: 2\n  g: 3  # its own\n"
    )
    comments = {setting.key: setting.comment for setting in read(file)}
    assert comments == {
        "loss.a": "after",
        "loss.b": "above",
        "loss.c": "above, and after",
        "loss.d": "",
        "loss.table.e": "of all",
        "loss.table.f": "of all",
        "loss.table.g": "its own",
    }


def test_the_package_of_a_file_is_part_of_its_keys(conf):
    file = conf / "loss" / "a.yaml"
    file.write_text("# @package _global_\n# What it is.\nsteps: 1\nloss:\n  gamma: 2\n")
    assert [setting.key for setting in read(file)] == ["steps", "loss.gamma"]


def test_a_pattern_is_part_of_a_key():
    found = search(settings(), "snr_gamma")
    assert {"loss/minsnr.yaml", "loss/soft_minsnr.yaml"} <= {
        entry.file for entry in found if entry.key == "loss.snr_gamma"
    }
    assert all("snr_gamma" in entry.key for entry in found)


def test_where_no_key_matches_the_explanations_are_searched():
    assert "compile" in {entry.key for entry in search(settings(), "torch.compile for")}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("optimiser.lr", "no setting matches optimiser.lr; did you mean optimizer.lr?"),
        ("(", r"( is not a regular expression"),
    ],
)
def test_a_pattern_that_finds_nothing_is_refused(pattern, message):
    with pytest.raises(ConfigError) as error:
        search(settings(), pattern)
    assert str(error.value).startswith(message)


def test_a_pipe_gets_one_line_for_each_setting(capsys):
    main(["^validation.items$"])
    key, default, file, comment = capsys.readouterr().out.splitlines()[0].split("\t")
    assert (key, default, file) == ("validation.items", "64", "config.yaml")
    assert comment.startswith("held-out images")


def test_a_reader_sees_equal_settings_of_several_files_once(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show([entry for entry in settings() if entry.key in ("loss.snr_gamma", "loss")])
    shown = capsys.readouterr().out
    assert "loss=minsnr  config.yaml" in shown
    assert "Options: cosmap, debiased, edm" in " ".join(shown.split())
    assert "loss.snr_gamma=5.0  loss/minsnr.yaml, loss/soft_minsnr.yaml" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_markdown_has_a_table_for_each_file_and_group():
    text = markdown(settings())
    assert "## config.yaml\n\n| setting | default | |\n|---|---|---|\n| `seed` | `0` |" in text
    assert "## loss\n" in text
    assert "| `loss=minsnr` (default) |" in text
    assert "### loss/minsnr.yaml" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(re.sub(r"\\\|", "", line).count("|") in (3, 4) for line in tables)


def test_it_needs_neither_torch_nor_hydra():
    code = "import sys, t2i.cli.settings as s; s.settings(); print({'torch', 'hydra', 'omegaconf'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
