"""The presets for Hydra's other launchers and sweepers, as `hydra/launcher=joblib` brings them."""

import warnings

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from t2i.config.compose import CONF

FORMER = "submitit_slurm"  # the name that slurm had
PRESETS = sorted(file for file in CONF.glob("hydra/*/plugins/*.yaml") if file.stem != FORMER)


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_an_option_is_the_file_in_conf_and_nothing_of_the_plugin_s_own(file):
    group = file.parent.parent.name
    with warnings.catch_warnings(action="error"), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=[f"hydra/{group}={file.stem}"], return_hydra_config=True)
    assert OmegaConf.to_container(cfg.hydra[group]) == OmegaConf.to_container(OmegaConf.load(file))


def test_the_former_name_of_slurm_has_its_options_and_those_that_it_had():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=[f"hydra/launcher={FORMER}"], return_hydra_config=True)
    before = OmegaConf.to_container(cfg.hydra.launcher)
    now = OmegaConf.to_container(OmegaConf.load(CONF / "hydra/launcher/slurm.yaml"))
    assert before.items() >= now.items()
    assert before.keys() - now.keys() == {"submitit_folder", "max_num_timeout", "stderr_to_stdout"}


def test_a_race_takes_options_for_the_launcher_that_runs_its_jobs():
    overrides = ["hydra/launcher=racing", "hydra.launcher.via=joblib", "hydra.launcher.via_options={n_jobs: 2}"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides=overrides, return_hydra_config=True)
    assert cfg.hydra.launcher.via_options == {"n_jobs": 2}


def test_another_program_s_options_are_left_alone(tmp_path):
    """Of another program that uses Hydra where t2i is installed: its conf/ has no presets."""
    ConfigStore.instance().store(group="hydra/launcher", name="joblib", node={"n_jobs": 7})
    (tmp_path / "config.yaml").write_text("a: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = hydra.compose("config", overrides=["hydra/launcher=joblib"], return_hydra_config=True)
    assert cfg.hydra.launcher == {"n_jobs": 7}
