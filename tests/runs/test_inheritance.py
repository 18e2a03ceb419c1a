"""A run that begins with another has its settings: the command line that `from=RUN` stands for."""

import json
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from t2i.config import ConfigError
from t2i.config.keys import flat
from t2i.runs.inheritance import as_parent, with_parents
from t2i.runs.next_steps import next_steps


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begun(name, *overrides, **config):
    folder = Path("multirun") / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"overrides": list(overrides)}))
    OmegaConf.save(OmegaConf.create({"steps": 10} | config), folder / "config.yaml")
    return folder


@pytest.mark.parametrize("given", ["from=base@5", "from.run=base@5"])
def test_the_settings_of_the_parent_stand_before_what_is_typed(given):
    begun("base", "loss=minsnr", "loss.snr_gamma=1", "optimizer.lr=1e-4", "run=base", "seed=3")
    assert with_parents([given, "optimizer.lr=1e-5", "run=next"]) == [
        *("loss=minsnr", "loss.snr_gamma=1", "seed=3"),
        *("from.run=base@5", "optimizer.lr=1e-5", "run=next"),
    ]


def test_the_short_form_goes_with_what_to_take():
    begun("base", "seed=3")
    assert with_parents(["from=base@5", "from.only=weights"]) == ["seed=3", "from.run=base@5", "from.only=weights"]


def test_another_option_of_a_group_leaves_the_settings_of_the_former_behind():
    begun("base", "loss=minsnr", "loss.snr_gamma=1", "samples={seed:1}")
    assert with_parents(["from=base", "loss=mse", "samples.seed=2"]) == [
        *("samples={seed:1}", "from.run=base", "loss=mse", "samples.seed=2")
    ]


def test_nothing_that_allows_or_leads_elsewhere_is_handed_down():
    """The parent may be a stranger's."""
    refused = ["allowed_targets=[os]", "+dataset.follow_links=true", "hydra.run.dir=/x", "hydra/launcher=joblib"]
    refused += ["hub.push=true", "run=a", "sweep=b", "stop_at=3", "from.run=c", "~hydra.callbacks"]
    refused += ["+loss@hub=mse", "+loss@_global_.hydra.job=mse", "loss@x:allowed_targets=mse"]
    begun("base", *refused, "steps=10")
    assert with_parents(["from=base"]) == ["steps=10", "from.run=base"]


@pytest.mark.parametrize("override", ["--config-dir=/tmp/x", "-m", "steps=1,2", "a b", "seed=${"])
def test_what_is_no_override_is_refused(override):
    begun("base", override)
    with pytest.raises(ConfigError, match="among its overrides is none"):
        with_parents(["from=base"])


def test_several_parents_hand_down_what_they_share_and_each_job_gets_the_rest():
    begun("a", "loss=minsnr", "loss.snr_gamma=1")
    begun("b", "loss=minsnr", "loss.snr_gamma=5")
    command = with_parents(["-m", "from=a,b@5", "steps=20"])
    assert command == ["-m", "loss=minsnr", "from.run=a,b@5", "steps=20"]
    job = with_parents(["loss=minsnr", "from.run=b@5", "steps=20"])
    assert job == ["loss=minsnr", "loss.snr_gamma=5", "from.run=b@5", "steps=20"]


def test_it_says_the_same_when_it_is_said_again():
    begun("base", "model=tiny", "seed=1")
    once = with_parents(["--config-dir", "x", "from=base", "steps=20"])
    assert once == ["--config-dir", "x", "model=tiny", "seed=1", "from.run=base", "steps=20"]
    assert with_parents(once) == once


def test_without_its_parent_a_run_has_the_settings_that_it_began_with():
    folder = begun("fork", "seed=1", "from.run=gone", "steps=20")
    (folder / "metrics.jsonl").touch()
    assert with_parents(["from=gone", "run=fork"]) == ["seed=1", "steps=20", "from.run=gone", "run=fork"]


def test_a_weights_file_hands_nothing_down():
    assert with_parents(["from=lora.safetensors", "steps=3"]) == ["from.run=lora.safetensors", "steps=3"]
    assert with_parents(["steps=3"]) == ["steps=3"]


def test_defaults_that_have_changed_since_are_those_of_the_parent():
    """Unless something typed has changed them."""
    begun("base", "seed=1", caption_dropout=0.2, max_grad_norm=5.0, num_workers=4, seed=1)
    today = {"steps": 10, "seed": 1, "caption_dropout": 0.1, "max_grad_norm": 1.0, "num_workers": 0}
    cfg = OmegaConf.create(today | {"max_grad_norm": 2.0, "from": {"run": "base"}})
    as_parent(cfg, lambda overrides: today)
    assert flat(OmegaConf.to_container(cfg)) == today | {
        "caption_dropout": 0.2,
        "max_grad_norm": 2.0,
        "from.run": "base",
    }


def test_the_command_to_go_on_with_a_run_allows_nothing_and_leaves_hydra_alone(tmp_path):
    """A page shows it to be pasted, and the run may be a stranger's."""
    refused = [
        "allowed_targets=[os]",
        "++hydra.callbacks.x._target_=os.system",
        "+loss@hydra.job=mse",
        "hydra/launcher=x",
    ]
    refused += ["+dataset.follow_links=true", "--config-dir=/tmp/theirs", "-m", "stop_at=3", "run=a"]
    step = next_steps(tmp_path / "b", "killed", {"overrides": [*refused, "steps=10"]})[0]
    assert shlex.split(step.command)[:3] == ["t2i", "train", "steps=10"]
    assert len(shlex.split(step.command)) == 4
