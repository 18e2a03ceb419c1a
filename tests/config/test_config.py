"""Every option composes and fits its target; mistakes end in one line, before anything is loaded."""

import os
import re
import subprocess
import sys
import time

import pytest
from helpers.runs import compose
from hydra.core.hydra_config import HydraConfig  # noqa: F401  (registers Hydra's own resolvers)
from omegaconf import OmegaConf

from t2i.config import CONF, ConfigError
from t2i.config.checks import check, check_types
from t2i.config.instantiate import check_signature
from t2i.config.moved_targets import MOVED
from t2i.experiment.plan import check_the_rest, make_plan


def prepare(cfg):
    """What comes before the data set and the model."""
    check(cfg, num_processes=1)
    make_plan(cfg)
    check_the_rest(cfg)


OPTIONS = sorted(
    f"{file.parent.name}={file.stem}" for file in CONF.glob("*/*.yaml") if file.parent.name not in ("hydra", "wandb")
)
NEED_MORE = {
    "dataset=sources": ["dataset.sources=[{path: images}]"],
    "adapter=textual_inversion": ["adapter.new_tokens=['<sks>:dog']"],
}
NEED_A_PATH = ("dataset=folder", "dataset=hub", "dataset=webdataset", "dataset=stream")


def command(*arguments, **kwargs):
    """Run `python -m t2i.train` as a user does."""
    return subprocess.run([sys.executable, "-m", "t2i.train", *arguments], capture_output=True, text=True, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_fits_its_target(option):
    given = ["dataset.path=./images"] if option in NEED_A_PATH else NEED_MORE.get(option, [])
    cfg = compose(option, *given)
    check(cfg, num_processes=1)
    check_types(cfg, compose(option))
    for group in cfg:
        if OmegaConf.is_dict(cfg[group]) and "_target_" in cfg[group]:
            check_signature(cfg, group)
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_a_dataset_brings_its_model_and_an_explicit_model_wins():
    assert compose("dataset=naruto").model.path == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert compose("dataset=naruto").optimizer.lr == 1e-5
    assert compose("dataset=naruto", "model=tiny").model.path == "tiny"
    assert compose("dataset=naruto", "optimizer.lr=2e-5").optimizer.lr == 2e-5
    assert compose("dataset=naruto", "loss=minsnr").loss._target_ == "t2i.diffusion.losses.MinSNR"


def test_the_naruto_recipe_is_that_of_diffusers_example():
    """And Min-SNR changes the loss alone; adapters want a higher learning rate."""
    plain, minsnr, lora = (compose(f"experiment=naruto_{name}") for name in ("sd15", "sd15_minsnr", "lora"))
    recipe = {
        "dataset.resolution": 512,
        "steps": 15000,
        "batch_size": 4,
        "micro_batch_size": 1,
        "optimizer.lr": 1e-5,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": True,
        "precision.dtype": "fp16",
        "attention": "xformers",
        "lr_scheduler.num_warmup_steps": 0,
        "ema.decay": 0.9999,
        "loss._target_": "t2i.diffusion.losses.MSE",
    }
    assert {key: OmegaConf.select(plain, key) for key in recipe} == recipe
    assert minsnr.loss.snr_gamma == 5
    assert {**plain, "loss": None} == {**minsnr, "loss": None}
    assert (lora.adapter._target_, lora.optimizer.lr) == ("t2i.models.lora.LoRA", 1e-4)


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda file: str(file.relative_to(CONF)))
def test_every_file_begins_by_saying_what_it_is(file):
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 20


def test_experiments_say_how_to_run_them():
    for file in CONF.glob("experiment/*.yaml"):
        assert re.search(rf"t2i train (-m )?experiment={file.stem}\b", file.read_text())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=10", "batch_size=10 is not a multiple of micro_batch_size=4 × 1 process; try 8 or 12"),
        ("batch_size=0", "batch_size=0 must be at least 1"),
        ("steps=-1", "steps=-1 must be at least 0"),
        ("caption_dropout=1.5", "caption_dropout=1.5 is a fraction of the captions: at most 1"),
        ("validation.items=0", "validation.items=0 must be at least 1"),
        ("keep_checkpoints=0", "keep_checkpoints=0 must be at least 1, or all"),
    ],
)
def test_values_out_of_range(override, message):
    cfg = compose("micro_batch_size=4", override)
    with pytest.raises(ConfigError) as error:
        check(cfg, num_processes=1)
    assert str(error.value) == message


def test_batch_size_counts_processes():
    check(compose("batch_size=16", "micro_batch_size=8"), num_processes=2)
    with pytest.raises(ConfigError, match="micro_batch_size=8 × 4 processes; try 32"):
        check(compose("batch_size=16", "micro_batch_size=8"), num_processes=4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=fast", "optimizer.lr=fast must be a number, like the 0.001 in conf/"),
        ("loss.snr_gamma=true", "loss.snr_gamma=True must be a number, like the 5.0 in conf/"),
        ("dataset.resolution=64.5", "dataset.resolution=64.5 must be a whole number, like the 64 in conf/"),
        ("batch_size=eight", "batch_size=eight must be a whole number, like the 32 in conf/"),
        ("samples.prompts=apple", "samples.prompts=apple must be a list, such as [apple]"),
        ("ema.warmup=3", "ema.warmup=3 must be true or false, like the True in conf/"),
    ],
)
def test_the_yaml_files_are_the_schema_of_components(override, message):
    with pytest.raises(ConfigError) as error:
        check_types(compose(override), compose())
    assert str(error.value) == message


HUBER = {"_target_": "t2i.diffusion.residuals.Huber", "c": 0.1, "schedule": "snr"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "steps=null must be a whole number, at least 0"),
        ({"steps": "many"}, "steps=many must be a whole number, at least 0"),
        ({"steps": {"a": 1}}, "steps={'a': 1} must be a whole number, at least 0"),
        ({"steps": 1.5}, "steps=1.5 must be a whole number, at least 0"),
        ({"seed": None}, "seed=null must be a whole number"),
        ({"seed": True}, "seed=True must be a whole number"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm=nan must be at least 0"),
        ({"compile": None}, "compile=null must be one of true, false, reduce-overhead"),
        ({"attention": None}, "attention=null must be a text"),
        ({"samples": None}, "samples=null must be a table with prompts, seed"),
        ({"samples": [1]}, "samples=[1] must be a table with prompts, seed"),
        ({"samples": {"x": 1}}, "samples.x is not a setting; samples has prompts, seed"),
        ({"samples": {"prompts": [1]}}, "samples.prompts=[1] must be a list of texts"),
        ({"samples": {"guidance_scale": None}}, "samples.guidance_scale=null must be a number"),
        ({"validation": {"items": None}}, "validation.items=null must be a whole number"),
        ({"validation": {"x": 1}}, "validation.x is not a setting; validation has seed"),
        ({"hub": {"x": 1}}, "hub.x is not a setting; hub has push, repo"),
        ({"hub": {"push": None}}, "hub.push=null must be true or false"),
        ({"precision": {"x": 1}}, "precision.x is not a setting; precision has dtype, weights"),
        ({"precision": {"dtype": [1]}}, "precision.dtype=[1] must be a text"),
        ({"loss": None}, "loss has no _target_"),
        ({"loss": {1: 2}}, "loss: t2i.diffusion.losses.MinSNR takes no such setting"),
        ({"loss": {"error": {**HUBER, "foo": 1}}}, "loss.error: t2i.diffusion.residuals.Huber takes no such setting"),
        ({"loss": {"error": {**HUBER, 1: 2}}}, "loss.error: t2i.diffusion.residuals.Huber takes no such setting"),
        ({"loss": {"error": {**HUBER, "c": "x"}}}, "loss: TypeError: "),
        ({"loss": {"error": 7}}, "loss.error=7 has no _target_"),
        ({"loss": {"error": None}}, "loss.error=null has no _target_"),
        ({"loss": {"error": {"c": 1}}}, "loss.error={'c': 1} has no _target_"),
        ({"timesteps": {"_target_": "t2i.diffusion.timesteps.LogitNormal", "mean": "a", "std": 1.0}}, "timesteps: "),
        ({"ema": {"decay": "x"}}, "ema: TypeError: "),
        ({"optimizer": {"betas": [0.9]}}, "optimizer: IndexError: "),
        ({"optimizer": {"betas": 7}}, "optimizer: TypeError: "),
        ({"optimizer": {"_partial_": False}}, "optimizer._partial_=False must be true"),
        ({"optimizer": {"_partial_": "os.system"}}, "optimizer._partial_=os.system must be true"),
        ({"lr_scheduler": {"num_warmup_steps": "x"}}, "lr_scheduler: TypeError: "),
        ({"scheduler": {"_target_": "diffusers.DDPMScheduler", "num_train_timesteps": -1}}, "scheduler: "),
        ({"scheduler": {"_target_": "diffusers.DDIMScheduler", "num_train_timesteps": 0}}, "scheduler: "),
        ({"scheduler": {"_target_": "diffusers.DDIMScheduler", "num_train_timesteps": 10**13}}, "scheduler: "),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_value_of_any_kind_is_refused_by_name(changes, message, defaults):
    """None of them is a fault of t2i, so there is no traceback."""
    content = dict(defaults)
    for key, value in changes.items():
        node = content[key]
        merged = isinstance(node, dict) and isinstance(value, dict) and "_target_" not in value
        content[key] = {**node, **value} if merged else value
    with pytest.raises(ConfigError) as error:
        prepare(OmegaConf.create(content))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def defaults():
    return OmegaConf.to_container(compose(), resolve=True)


def test_whole_numbers_are_numbers():
    check_types(compose("loss.snr_gamma=5", "optimizer.lr=1", "run=name"), compose())


def test_settings_that_a_target_does_not_take():
    with pytest.raises(
        ConfigError,
        match=r"loss: t2i.diffusion.losses.MinSNR takes no such setting .*gamma.*it takes normalize, error, snr_gamma",
    ):
        make_plan(compose("+loss.gamma=5"))
    with pytest.raises(ConfigError, match=r"^dataset.path must be given$"):
        check_the_rest(compose("dataset=hub"))
    with pytest.raises(ConfigError, match=r"can't call Nothing here; loss takes CosMap, Debiased, EDM, MSE, MinSNR"):
        make_plan(compose("loss._target_=t2i.diffusion.losses.Nothing"))
    with pytest.raises(ConfigError, match=r"optimizer._target_=torch.optim.Nothing can't be imported"):
        check_the_rest(compose("optimizer._target_=torch.optim.Nothing"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.snr_gamma=0"], "loss.snr_gamma=0 must be positive; the paper uses 5"),
        (["loss=p2", "loss.k=-1"], "loss.k=-1 must be positive"),
        (["loss=edm", "loss.sigma_data=0"], "loss.sigma_data=0 must be positive"),
        (["error=huber", "error.c=0"], "error.c=0 must be positive"),
        (["error=huber", "error.schedule=linear"], "error.schedule=linear is not known; choose from constant"),
        (["timesteps=logit_normal", "timesteps.std=0"], "timesteps.std=0 must be positive"),
        (["timesteps=biased", "timesteps.portion=2"], "timesteps.portion=2 must be a fraction of the timesteps"),
        (["timesteps=biased", "timesteps.strategy=often"], "timesteps.strategy=often is not known"),
        (
            ["scheduler.prediction_type=velocity"],
            "scheduler.prediction_type=velocity is not known; choose from epsilon",
        ),
        (["scheduler=epsilon", "scheduler.rescale_betas_zero_snr=true"], "use scheduler.prediction_type=v_prediction"),
        (
            ["scheduler=ddpm", "scheduler.beta_schedule=lin"],
            "scheduler: lin is not implemented",
        ),
        (
            ["scheduler.timestep_spacing=trailling"],
            "scheduler: this scheduler can't sample (trailling is not supported",
        ),
        (["scheduler.rescale_betas_zero_snr=no"], "scheduler.rescale_betas_zero_snr=no must be true, false or null"),
        (["samples.prompts=[]"], "samples.prompts is empty; to generate no samples, use sample_every=0"),
        (["threads=-1"], "threads=-1 must be at least 1"),
        (["ema.decay=1"], "ema.decay=1 must be in [0, 1)"),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
        (["optimizer=lion", "optimizer.lr=-1"], "optimizer: AssertionError: assert lr > 0"),
        (
            [
                "optimizer._target_=torch.optim.LBFGS",
                "~optimizer.betas",
                "~optimizer.eps",
                "~optimizer.weight_decay",
                "~optimizer.fused",
            ],
            "optimizer: TypeError: LBFGS.step() missing",
        ),
        (["lr_scheduler.decay_share=1.5"], "lr_scheduler.decay_share=1.5 must be a fraction of the steps"),
        (["tracker.mode=cloud"], "tracker.mode=cloud is not known; choose from auto"),
        (["attention=xformers"], "attention=xformers needs a GPU; use attention=auto"),
        (["attention=flahs"], "attention=flahs is not known; choose from auto, sdpa, math, xformers, or for a transf"),
        (["attention=flash"], "attention=flash can't run here: "),
        (["attention=_native_flash"], "attention=_native_flash needs a GPU; use attention=auto"),
        (["precision.dtype=int8"], "precision.dtype=int8 is not known; choose from auto, fp32"),
        (["model.path=./nowhere"], "model.path=./nowhere holds no pipeline"),
    ],
)
def test_contradictions_are_found_before_anything_is_loaded(overrides, message):
    """In under two seconds of work; `make_plan` comes before the data set and the model."""
    cfg, start = compose(*overrides), time.process_time()
    with pytest.raises(ConfigError) as error:
        prepare(cfg)
    assert message in str(error.value)
    assert time.process_time() - start < 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["los=mse"], "t2i: los is not a setting; did you mean loss?"),
        (["loss=l2"], "t2i: loss=l2 is not an option; choose from cosmap, debiased"),
        (["loss.gamma=1"], "t2i: loss.gamma is not a setting; did you mean loss.snr_gamma?"),
        (["loss=["], "t2i: loss=[ can't be read"),
        (["hydra/launcher=proceses", "-m"], "t2i: hydra/launcher=proceses is not an option; did you mean processes?"),
        (["batch_size=eight"], "t2i: batch_size=eight must be a whole number, like the 32 in conf/"),
        (["optimizer.lr=fast"], "t2i: optimizer.lr=fast must be a number"),
        (["loss.snr_gamma=-5"], "t2i: loss.snr_gamma=-5 must be positive"),
        (["model.path=./nowhere"], "t2i: model.path=./nowhere holds no pipeline"),
        (
            ["dataset=naruto"],
            "t2i: model.path=stable-diffusion-v1-5/stable-diffusion-v1-5 is not on this machine",
        ),
        (["batch_size=10", "micro_batch_size=4"], "t2i: batch_size=10 is not a multiple of micro_batch_size=4"),
    ],
)
def test_mistakes_end_in_one_clear_line(arguments, message, tmp_path):
    run = command(*arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith(message)
    assert len(run.stderr.splitlines()) == 1
    assert not list(tmp_path.rglob("train.log"))
    assert not list(tmp_path.rglob("run.json"))


def import_diffusers():
    """What any program around Diffusers pays before it does anything."""
    subprocess.run([sys.executable, "-c", "import torch, hydra; from diffusers import DDIMScheduler"], check=True)


def cpu_seconds(run, *arguments, **kwargs) -> float:
    """Those of the processes that `run` starts, which a busy machine changes less than the time on the clock."""
    before = os.times()
    run(*arguments, **kwargs)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "share"), [(["--help"], 0.5), (["--cfg", "job"], 0.25), (["loss.snr_gamma=-5"], 1.0)]
)
def test_the_command_line_answers_before_diffusers_would_be_imported(arguments, share, tmp_path):
    rounds = [(cpu_seconds(command, *arguments, cwd=tmp_path), cpu_seconds(import_diffusers)) for _ in range(3)]
    taken, imports = zip(*rounds, strict=True)
    assert min(taken) < share * min(imports)


@pytest.mark.slow
def test_checks_of_settings_import_no_large_library():
    """Of those that they do without; each takes about a second."""
    code = "import sys, t2i.experiment.plan; print({'transformers', 'datasets', 'pandas', 'jax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_the_command_line_does_not_import_torch():
    code = "import sys, t2i.train; print(sorted({'torch', 'diffusers', 'wandb', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "override",
    [
        "loss._target_=os.system",
        "+loss.extra._target_=builtins.eval",
        "+dataset.list=[{_target_: subprocess.run}]",
        "model._target_=torch.hub.load",
        "scheduler._target_=diffusers.DiffusionPipeline.from_pretrained",
        "loss._target_=t2ix.Loss",
    ],
)
def test_code_outside_of_the_project_is_not_called(override):
    with pytest.raises(
        ConfigError, match=r"_target_=.* calls code outside of t2i; .*on the command line: 'allowed_tar"
    ):
        make_plan(compose(override))


def test_a_target_that_has_moved_is_named_under_its_new_name():
    with pytest.raises(ConfigError) as error:
        make_plan(compose("loss._target_=t2i.losses.MinSNR"))
    assert str(error.value) == (
        f"loss._target_=t2i.losses.MinSNR has moved to {MOVED['t2i.losses.MinSNR']}; use the new name"
    )


def test_code_outside_is_called_where_it_is_allowed_on_the_command_line(tmp_path):
    (tmp_path / "mine.py").write_text("from t2i.diffusion.losses import MSE\nclass Mine(MSE):\n    pass\n")
    arguments = ("loss=mse", "loss._target_=mine.Mine", "steps=-1", "allowed_targets=[mine]")
    run = command(*arguments, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert run.stderr == "t2i: steps=-1 must be at least 0\n"
    assert make_plan(compose("loss=mse", "loss._target_=t2i.diffusion.losses.MSE"))


def test_a_file_cannot_allow_itself_anything(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n# Somebody else's.\nallowed_targets: [os]\nloss: {_target_: os.system}\n"
    (tmp_path / "experiment" / "theirs.yaml").write_text(text)
    run = command("--config-dir", str(tmp_path), "experiment=theirs", cwd=tmp_path)
    assert run.returncode == 2
    assert "allowed_targets=['os'] comes from a file; it counts on the command line only" in run.stderr
