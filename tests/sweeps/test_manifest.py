import json

import pytest
from helpers.runs import compose
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError

from t2i.config import ConfigError
from t2i.config.compose import CONF
from t2i.config.keys import flat
from t2i.config.moved_targets import ADDED, CHANGED, with_moved_targets
from t2i.config.resolvers import register
from t2i.runs.folder import Run
from t2i.sweeps.manifest import Guard, as_begun, job_folder, write_manifest


def sweep(folder, *overrides):
    """The configuration that Hydra hands to the launcher for `-m OVERRIDES`; writes sweep.json in `folder`."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    config = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
    write_manifest(folder, config)
    return config


def test_names_can_be_typed_back(tmp_path):
    sweep(tmp_path, "loss=mse,minsnr", "optimizer.lr=1e-4,3e-4", "steps=10", "sweep=s")
    name = job_folder(str(tmp_path), ["loss=mse", "optimizer.lr=1e-4", "steps=10", "sweep=s"])
    assert name == "loss-mse_optimizer.lr-0.0001"


@pytest.mark.parametrize(("one", "other"), [("1e-4", "0.0001"), ("5", "5.0"), ("True", "True")])
def test_a_value_written_in_another_way_is_the_same_job(tmp_path, one, other):
    sweep(tmp_path, "loss.snr_gamma=1,5")
    assert job_folder(str(tmp_path), [f"loss.snr_gamma={one}"]) == job_folder(
        str(tmp_path), [f"loss.snr_gamma={other}"]
    )


def test_paths_and_long_values_become_short_and_distinct(tmp_path):
    sweep(tmp_path, "model.path=/a/tiny,/b/tiny")
    one, other = (job_folder(str(tmp_path), [f"model.path=/{name}/tiny"]) for name in "ab")
    assert one.startswith("model.path-tiny-")
    assert one != other
    assert len(job_folder(str(tmp_path), [f"model.path={'x' * 300}"])) < 120


def test_values_that_look_alike_in_a_name_have_folders_of_their_own(tmp_path):
    """A sweep that began before is found where it is; the other value, which had the same folder, gets its own."""
    sweep(tmp_path, "dataset=folder", "dataset.path=pics", "dataset.caption='a cat!','a cat?'")
    one, other = (job_folder(str(tmp_path), [f"dataset.caption='a cat{mark}'"]) for mark in "!?")
    assert one != other
    assert one.startswith("dataset.caption--a-cat-")
    before = tmp_path / "dataset.caption--a-cat-"
    before.mkdir()
    (before / "run.json").write_text(json.dumps({"state": "finished", "overrides": ["dataset.caption='a cat!'"]}))
    assert job_folder(str(tmp_path), ["dataset.caption='a cat!'"]) == before.name
    assert job_folder(str(tmp_path), ["dataset.caption='a cat?'"]) == other


def test_a_finished_run_is_not_marked_from_outside(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"state": "finished", "ended": "then"}))
    Run.mark(tmp_path, state="failed", error="its folder was taken twice")
    assert json.loads((tmp_path / "run.json").read_text()) == {"state": "finished", "ended": "then"}


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_a_run_is_below_multirun_or_where_an_absolute_path_says(kind, tmp_path, monkeypatch):
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import setup_globals

    setup_globals()  # which registers ${hydra:...}
    register(job_folder)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)

    def folder(name):
        config = sweep(tmp_path / str(name).replace("/", "-"), f"{kind}={name}")
        HydraConfig.instance().cfg = config
        return str(config.hydra.run.dir if kind == "run" else config.hydra.sweep.dir)

    assert folder("a/b") == "multirun/a/b"
    assert folder(tmp_path / "run1") == str(tmp_path / "run1")
    for name in ("../escape", "a/../../escape", ".."):
        with pytest.raises(InterpolationResolutionError, match=rf"={name} leads out of multirun/; give an absolute"):
            folder(name)


def test_a_setting_that_is_varied_later_leaves_the_first_jobs_where_they_are(tmp_path):
    sweep(tmp_path, "loss.snr_gamma=1,5")
    sweep(tmp_path, "loss.snr_gamma=1,5,20", "seed=0,1")
    assert job_folder(str(tmp_path), ["loss.snr_gamma=5", "seed=0"]) == "loss.snr_gamma-5"
    assert job_folder(str(tmp_path), ["loss.snr_gamma=5", "seed=1"]) == "loss.snr_gamma-5_seed-1"


def test_a_single_value_of_what_was_varied_finds_its_job(tmp_path):
    sweep(tmp_path, "loss.snr_gamma=1,5", "optimizer.lr=1e-4,3e-4")
    sweep(tmp_path, "loss.snr_gamma=5", "optimizer.lr=1e-4")
    name = job_folder(str(tmp_path), ["loss.snr_gamma=5", "optimizer.lr=1e-4"])
    assert name == "loss.snr_gamma-5_optimizer.lr-0.0001"


def test_what_is_not_varied_must_stay_as_it_was(tmp_path):
    sweep(tmp_path, "loss.snr_gamma=1,5", "steps=300")
    with pytest.raises(ConfigError, match=r"another configuration \(steps: 300 → 500\); use another sweep=NAME"):
        sweep(tmp_path, "loss.snr_gamma=50", "steps=500")
    sweep(tmp_path, "loss.snr_gamma=50", "steps=300", "num_workers=2")  # which computes the same


def test_a_sweep_with_more_steps_says_how_to_go_on_from_its_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "multirun" / "gamma"
    sweep(folder, "loss.snr_gamma=1,5", "steps=300")
    for job in ("loss.snr_gamma-1", "loss.snr_gamma-5"):
        (folder / job).mkdir()
        (folder / job / "run.json").write_text("{}")
    command = "t2i train -m from=gamma/loss.snr_gamma-1,gamma/loss.snr_gamma-5 steps=500 sweep=gamma-2"
    with pytest.raises(ConfigError, match=f"type: {command}$"):
        sweep(folder, "loss.snr_gamma=1,5", "steps=500")


def test_a_search_space_is_varied(tmp_path):
    config = sweep(tmp_path / "other")
    with open_dict(config):
        config.hydra.sweeper.params = {"loss.snr_gamma": "1,5", "steps": "10"}
    write_manifest(tmp_path, config)
    assert list(json.loads((tmp_path / "sweep.json").read_text())["varied"]) == ["loss.snr_gamma"]


def test_a_sweep_in_every_rank_is_refused_with_the_way_to_do_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = sweep(tmp_path / "other", "loss.snr_gamma=1,5", "sweep=s")
    with pytest.raises(SystemExit) as stopped:
        Guard().on_multirun_start(config)
    assert stopped.value.code == 2
    assert "'hydra.launcher.command=\"accelerate launch --num_processes 2 -m t2i.train\"'" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["ray", "joblib"])
def test_a_missing_plugin_is_named_with_the_command_that_brings_it(monkeypatch, capsys, option):
    monkeypatch.setattr("t2i.sweeps.manifest.find_spec", lambda name: None)
    choices = {"hydra/launcher": option, "hydra/sweeper": "basic"}
    launcher = OmegaConf.load(CONF / f"hydra/launcher/plugins/{option}.yaml")
    node = {"launcher": launcher, "sweeper": {"_target_": "x.y"}}
    config = OmegaConf.create({"hydra": node | {"runtime": {"choices": choices}}})
    with pytest.raises(SystemExit):
        Guard().on_multirun_start(config)
    error = capsys.readouterr().err
    assert f"hydra/launcher={option}: " in error
    assert f"is missing; pip install 't2i[{option}]'" in error


def before_the_battery_of_log_snrs(folder):
    """Make sweep.json that of t2i 0.1, which lacked some settings."""
    manifest = json.loads((folder / "sweep.json").read_text())
    for key in ADDED:
        manifest["config"].pop(key, None)  # not every data set has every setting
    (folder / "sweep.json").write_text(json.dumps(manifest))


@pytest.mark.slow
def test_what_began_before_a_setting_existed_goes_on_as_it_began(tmp_path):
    """A sweep, its jobs that have not begun, and one that did; also when it is continued for the second time."""
    sweep(tmp_path, "loss.snr_gamma=1,5")
    before_the_battery_of_log_snrs(tmp_path)
    sweep(tmp_path, "loss.snr_gamma=1,5,20")
    with pytest.raises(ConfigError, match=r"another configuration \(validation.log_snr: None → \[-4, 4\]\)"):
        sweep(tmp_path, "loss.snr_gamma=1,5", "validation.log_snr=[-4,4]")

    folder = tmp_path / "loss.snr_gamma-1"
    for _ in range(3):
        config = compose()
        as_begun(config, folder, ["loss.snr_gamma=1"], {})
        assert (config.validation.log_snr, config.continuous_time) == (None, False)
        run = Run(folder, config)
        run.begin()
        run.log(0, {"val/loss": 1.0})
    typed = compose("validation.log_snr=[-4,4]")
    as_begun(typed, folder, ["validation.log_snr=[-4,4]"], {})
    with pytest.raises(ConfigError, match=r"different configuration \(validation.log_snr: None → \[-4, 4\]\)"):
        Run(folder, typed)

    new = compose()
    as_begun(new, tmp_path / "new" / "job", [], {})
    assert new == compose()


@pytest.mark.slow
def test_what_began_with_another_default_keeps_it(tmp_path):
    """A sweep that grows, and its jobs; not what was typed, and not a sweep that begins today."""
    sweep(tmp_path, "loss.snr_gamma=1,5")
    manifest = json.loads((tmp_path / "sweep.json").read_text())
    today = {key: manifest["config"][key] for key in CHANGED["model=tiny"]}
    assert today == {key: new for key, (_, new) in CHANGED["model=tiny"].items()}
    manifest["config"] |= {"steps": 300, "optimizer.lr": 7e-4}
    (tmp_path / "sweep.json").write_text(json.dumps(manifest))
    sweep(tmp_path, "loss.snr_gamma=1,5,20")
    assert json.loads((tmp_path / "sweep.json").read_text())["config"] == manifest["config"]
    with pytest.raises(ConfigError, match=r"another configuration \(steps: 300 → 200\)"):
        sweep(tmp_path, "loss.snr_gamma=1,5", "steps=200")

    config = compose("loss.snr_gamma=1")
    kept = as_begun(config, tmp_path / "loss.snr_gamma-1", ["loss.snr_gamma=1"], {"model": "tiny"})
    assert kept == CHANGED["model=tiny"]
    assert (config.steps, config.optimizer.lr, config.lr_scheduler.num_training_steps) == (300, 7e-4, 300)


def test_a_flow_that_began_before_its_scheduler_had_a_name_is_the_same_flow():
    before = {
        "_target_": "diffusers.DPMSolverMultistepScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "steps_offset": 1,
        "flow_shift": 3.0,
    }
    now = compose("scheduler=flow_matching", "scheduler.shift=3").scheduler
    assert with_moved_targets({"scheduler": before}) == {"scheduler": now}
    assert with_moved_targets(flat({"scheduler": before})) == flat({"scheduler": dict(now)})
    own = before | {"use_karras_sigmas": True}
    assert with_moved_targets(own) == own
