"""What somebody else's configuration can't do: no attempt leaves a trace, whichever door it comes through.

An attempt takes one of the doors, in turn, as all of them lead to the same checks; with T2I_ALL_DOORS=1 it takes every
one, for minutes.
"""

import json
import logging
import os
import pickle
import re
import shlex
import shutil
import sys

import diffusers
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from safetensors.torch import save_file

from t2i import check, compare, encode, evaluate, push, sample, train, weights
from t2i.cli import failing
from t2i.cli.log_records import clean_logs
from t2i.config import CONF, ConfigError
from t2i.config.compose import compose, composed, search_path
from t2i.config.foreign import check_foreign_files
from t2i.config.instantiate import build, check_targets
from t2i.config.model_size import BUNDLED
from t2i.config.resolvers import HARMLESS, OURS, READABLE, registered, restrict
from t2i.config.secrets import BLANK, redact, redact_all
from t2i.experiment import run as experiment
from t2i.experiment.plan import make_plan
from t2i.models import stable_diffusion
from t2i.models.lora_settings import AVERAGED
from t2i.models.shapes import shapes_only
from t2i.publishing.model_card import plain
from t2i.sampling.pipelines import load_pipeline

ALL_DOORS = "T2I_ALL_DOORS" in os.environ
SECRET = "hf_abcdefghijklmnop"
GLOBAL = "# @package _global_\n# Somebody else's.\n"


class Harm:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.fixture
def logging_as_before():
    """Hydra configures the root logger."""
    root = logging.getLogger()
    handlers, level, make = root.handlers[:], root.level, logging.getLogRecordFactory()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.setLogRecordFactory(make)


def trained(*_):
    raise AssertionError("an attempt was taken for a run")


@pytest.fixture
def harm(tmp_path, monkeypatch, logging_as_before):
    """The file that an attempt writes if it succeeds; the test's folder holds what the attempts need."""
    file = tmp_path / "harm"
    (tmp_path / "hubconf.py").write_text(f"open({str(file)!r}, 'w')\ndef entry(**_):\n    pass\n")
    torch.save(Harm(file), tmp_path / "evil.pt")
    (tmp_path / "my_losses.py").write_text(
        "import os, subprocess, functools\nfrom t2i.runs import files\nfrom t2i.diffusion.losses import MSE\n"
        "run = functools.partial(os.system)\nclass Mine(MSE):\n    os = os\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(experiment, "run", trained)
    yield file
    GlobalHydra.instance().clear()
    sys.modules.pop("my_losses", None)
    assert not file.exists()


def attempts(folder):
    """name -> a node that would write folder/harm."""
    harm, pickled = str(folder / "harm"), str(folder / "evil.pt")
    touch = {"command": f"touch {harm}", "args": [f"touch {harm}"], "shell": True}
    return {
        "hubconf.py": {
            "_target_": "t2i.runs.checkpoints.torch.hub.load",
            **{"repo_or_dir": str(folder), "model": "entry", "source": "local"},
        },
        "a pickle": {"_target_": "t2i.runs.checkpoints.torch.load", "f": pickled, "weights_only": False},
        "torch.load": {"_target_": "torch.load", "f": pickled, "weights_only": False},
        "a module of torch.optim": {
            "_target_": "torch.optim.optimizer.torch.load",
            "f": pickled,
            "weights_only": False,
        },
        "a program": {"_target_": "t2i.sweeps.process.subprocess.call", **touch},
        "a launcher": {"_target_": "t2i.sweeps.process.run_job", "command": f"touch {harm}"},
        "a file": {"_target_": "t2i.runs.files.atomic_write", "path": harm, "text": ""},
        "a method": {"_target_": "t2i.runs.folder.Run.mark", "folder": str(folder)},
        "an attribute of a class": {"_target_": "t2i.diffusion.losses.MinSNR.__class__", "name": "x"},
        "the globals of a function": {"_target_": "t2i.diffusion.losses.MinSNR.__init__.__globals__", "x": 1},
        "a class with a tail": {"_target_": "t2i.diffusion.losses.MinSNR.scale", "snr": 1},
        "positional": {"_target_": "t2i.diffusion.losses.MSE", "_args_": [{"_target_": "os.mkdir", "path": harm}]},
        "partial": {"_target_": "functools.partial", "_args_": [{"_target_": "os.mkdir"}, harm]},
        "Hydra": {"_target_": "hydra.utils.call", "config": {"_target_": "os.mkdir", "path": harm}},
        "not recursive": {"_target_": "t2i.diffusion.losses.MSE", "_recursive_": False},
        "converted": {"_target_": "t2i.diffusion.losses.MSE", "_convert_": "object"},
        "late": {"_target_": "t2i.diffusion.losses.MSE", "_partial_": True},
        "nested": {"_target_": "t2i.diffusion.losses.MSE", "error": {"_target_": "os.mkdir", "path": harm}},
        "of another group": {"_target_": "t2i.diffusion.losses.MSE", "error": {"_target_": "t2i.tracking.Wandb"}},
        "another group": {"_target_": "t2i.models.stable_diffusion.load", "path": "tiny"},
        "in a list": {"_target_": "t2i.diffusion.losses.MSE", "error": [{"_target_": "os.mkdir", "path": harm}]},
        "deep": {"_target_": "t2i.diffusion.losses.MSE", "error": {"a": [{"b": {"_target_": "os.mkdir"}}]}},
        "relative": {"_target_": ".losses.MSE"},
        "empty": {"_target_": ""},
        "one word": {"_target_": "print"},
        "a number": {"_target_": 7},
        "a list": {"_target_": ["os.mkdir"], "path": harm},
        "a table": {"_target_": {"_target_": "os.mkdir"}, "path": harm},
        "look-alike": {"_target_": "t2і.diffusion.losses.MSE"},  # a Cyrillic letter
        "full width": {"_target_": "os.mkdir", "path": harm},
        "space": {"_target_": "t2i.diffusion.losses.MSE ", "normalize": False},
        "line": {"_target_": "t2i.diffusion.losses.MSE\nos.mkdir", "normalize": False},
        "slash": {"_target_": "t2i/diffusion/losses.MSE"},
        "file": {"_target_": f"{folder}/my_losses.Mine"},
    }


ATTEMPTS = [*attempts(CONF)]
LIBRARIES = {
    "scheduler": [
        "diffusers.DiffusionPipeline",
        "diffusers.DiffusionPipeline.from_pretrained",
        "diffusers.SchedulerMixin",
        "diffusers.schedulers.scheduling_utils.SchedulerMixin",
        "diffusers.DDIMScheduler.from_pretrained",
        "diffusers.schedulers.scheduling_ddim.torch.load",
        "diffusers.schedulers.scheduling_utils.os.system",
        "diffusers.UNet2DConditionModel",
        "diffusers.schedulers.scheduling_ddim.torch",
        "diffusers.logging",
    ],
    "optimizer": [
        "torch.optim.Optimizer",
        "torch.optim.lr_scheduler.LambdaLR",
        "torch.optim.adamw.torch.load",
        "torch.optim.Adam.load_state_dict",
        "torch.optim.swa_utils.AveragedModel",
        "torch.optim.optimizer.functools",
        "bitsandbytes.optim.GlobalOptimManager",
        "schedulefree.ScheduleFreeWrapper",
        "transformers.pipeline",
        "torch.optim.optimizer.OrderedDict",
        "torch.optim.optimizer.deepcopy",
        "torch.hub.load",
        "t2i.optim.optimizers.torch",
    ],
    "lr_scheduler": [
        "torch.optim.lr_scheduler.LRScheduler",
        "torch.optim.lr_scheduler.partial",
        "torch.optim.AdamW",
        "diffusers.optimization.LambdaLR",
        "diffusers.optimization.math.pow",
        "torch.optim.lr_scheduler.wraps",
    ],
    "tracker": [
        "t2i.tracking.wandb",
        "t2i.tracking.wandb.os.system",
        "t2i.tracking.Wandb.finish",
    ],
    "dataset": [
        "t2i.data.image_folder.Path",
        "t2i.data.openmoji.draw",
    ],
    "model": [
        "t2i.models.loading.locate",
        "t2i.models.stable_diffusion.torch.load",
    ],
}


def end_of(command, arguments, capsys):
    """Run a command, which must end with one line for the user; returns that line."""
    with pytest.raises(SystemExit) as end:
        failing.run(command, arguments)
    output = capsys.readouterr()
    expected = 1 if re.search(r"\d of \d jobs failed", output.err) else 2  # a sweep goes on with its other jobs
    assert end.value.code == expected, output.out + output.err
    assert "Traceback" not in output.err
    assert SECRET not in output.err + output.out
    return output.err + output.out


def theirs(folder, content, group="experiment"):
    """A folder of options of a stranger's."""
    file = folder / "theirs" / group / "theirs.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else OmegaConf.to_yaml(OmegaConf.create(content))
    file.write_text(GLOBAL + text if group == "experiment" else "# Somebody else's.\n" + text)
    return str(folder / "theirs")


def some(doors, i):
    """All of the doors, or the one whose turn it is at attempt i."""
    return doors if ALL_DOORS else [doors[i % len(doors)]]


@pytest.fixture(scope="module")
def configured():
    """A function that makes the default configuration with some nodes replaced."""
    defaults = OmegaConf.to_container(compose([]))
    return lambda nodes: OmegaConf.create(defaults | nodes)


@pytest.mark.parametrize("name", ATTEMPTS)
@pytest.mark.usefixtures("harm")
def test_a_target_calls_only_what_its_group_takes(name, configured, tmp_path):
    """In its place, and where no component is expected."""
    node = attempts(tmp_path)[name]
    with pytest.raises(ConfigError, match="loss"):
        build(configured({"loss": node}), "loss")
    with pytest.raises(ConfigError, match="samples"):
        check_targets(configured({"samples": {"prompts": [node]}}))


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTEMPTS)
@pytest.mark.usefixtures("harm")
def test_no_door_lets_such_a_target_in(name, tmp_path, capsys):
    """As an option and in an experiment of --config-dir, and in a folder of hydra.searchpath."""
    node = attempts(tmp_path)[name]
    folder = theirs(tmp_path, node, group="loss")
    theirs(tmp_path, {"loss": node})
    doors = [
        (train.cli, ["--config-dir", folder, "loss=theirs"]),
        (train.cli, ["--config-dir", folder, "experiment=theirs", "loss=mse"]),
        (check.main, [f"hydra.searchpath=[file://{folder}]", "experiment=theirs", "loss=mse"]),
        (check.main, ["--config-dir", folder, "loss=theirs"]),
        (check.main, ["--memory", "--config-dir", folder, "experiment=theirs"]),
        (weights.main, ["--config-dir", folder, "loss=theirs"]),
        (encode.main, ["--config-dir", folder, "experiment=theirs"]),
    ]
    for command, arguments in some(doors, ATTEMPTS.index(name)):
        end_of(command, arguments, capsys)


@pytest.mark.parametrize(("group", "target"), [(group, name) for group, names in LIBRARIES.items() for name in names])
def test_libraries_are_called_by_base_class(group, target, configured):
    with pytest.raises(ConfigError, match=r"calls code outside of t2i|can't call|can't be imported|not the name"):
        build(configured({group: {"_target_": target}}), group)


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("scheduler", "diffusers.PNDMScheduler"),
        ("scheduler", "diffusers.schedulers.scheduling_euler_discrete.EulerDiscreteScheduler"),
        ("optimizer", "torch.optim.SGD"),
        ("optimizer", "torch.optim.adamw.AdamW"),
        ("optimizer", "transformers.Adafactor"),
        ("optimizer", "transformers.optimization.Adafactor"),
        ("lr_scheduler", "torch.optim.lr_scheduler.ConstantLR"),
        ("lr_scheduler", "diffusers.optimization.get_polynomial_decay_schedule_with_warmup"),
    ],
)
def test_families_of_libraries_are_open(group, target, configured):
    node = {"_target_": target} | ({} if group == "scheduler" else {"_partial_": True})
    assert build(configured({group: node}), group) is not None


@pytest.mark.parametrize(
    "target",
    [
        *("my_losses.os.system", "my_losses.subprocess.call", "my_losses.files.atomic_write", "my_losses.MSE"),
        *("my_losses.Mine.os.system", "my_losses.Mine.mro", "my_losses.Mine.__class__", "my_losses.run.func"),
        *("my_losses", "my_losses.", "my_losses.Nothing", "my_losses.run", "my_lossesx.Mine", "my_losses..Mine"),
    ],
)
@pytest.mark.usefixtures("harm")
def test_an_allowed_module_gives_what_it_defines(target, configured, tmp_path):
    node = {"_target_": target, "path": str(tmp_path / "harm")}
    with pytest.raises(ConfigError, match=r"loss\._target_"):
        build(configured({"loss": node, "allowed_targets": ["my_losses"]}), "loss")


@pytest.mark.slow
@pytest.mark.usefixtures("harm")
def test_a_newcomers_own_loss_is_built(tmp_path, capsys):
    folder = theirs(tmp_path, "_target_: my_losses.Mine\nnormalize: false\nerror: ${error}\n", group="loss")
    allowed = "allowed_targets=[my_losses]"
    line = end_of(train.cli, ["--config-dir", folder, "loss=theirs", allowed, "optimizer.lr=-1"], capsys)
    assert "Invalid learning rate: -1" in line  # which comes after the loss
    cfg = compose([f"hydra.searchpath=[file://{folder}]", "loss=theirs", allowed])
    assert type(make_plan(cfg).loss).__name__ == "Mine"


FORBIDDEN = {
    "a pickle": "loss: '${oc.create:{_target_: torch.load, f: evil.pt, weights_only: false}}'",
    "decoded": "loss: '${oc.decode:\"{_target_: os.mkdir, path: harm}\"}'",
    "selected": "a: {_target_: os.mkdir, path: harm}\nloss: ${oc.select:a}",
    "deprecated": "a: {_target_: os.mkdir, path: harm}\nloss: ${oc.deprecated:a}",
    "keys": "samples: {prompts: '${oc.dict.keys:loss}'}",
    "values": "samples: {prompts: '${oc.dict.values:loss}'}",
    "a node": "a: {_target_: os.mkdir, path: harm}\nloss: ${a}",
    "a name from parts": "a: os\nloss: {_target_: '${a}.mkdir', path: harm}",
    "a resolver from parts": "a: oc.create\nloss: '${${a}:{_target_: os.mkdir, path: harm}}'",
    "resolved twice": "loss: {_target_: t2i.diffusion.losses.MSE, error: '\\${oc.create:{_target_: os.mkdir}}'}",
    "either": "loss: {_target_: '${either:os.mkdir,x}', path: harm}",
    "an anchor": "a: &a {_target_: os.mkdir, path: harm}\nloss: *a",
    "a merged anchor": "a: &a {_target_: os.mkdir, path: harm}\nloss: {<<: *a}",
    "no YAML": "loss: ${oc.create:{_target_: os.mkdir, path: harm}}",
    "a tag": "loss: !!python/object/apply:os.mkdir [harm]",
    "a tag in a name": "loss: {_target_: !!python/name:os.mkdir '', path: harm}",
    "a token in the prompts": "samples: {prompts: ['${oc.env:HF_TOKEN}']}",
    "a token in the project": "tracker: {project: '${oc.env:HF_TOKEN}'}",
    "a token in the run's name": "run: ${oc.env:HF_TOKEN}",
    "a token in the sweep's name": "sweep: ${oc.env:HF_TOKEN}",
    "a token by default": "hub: {repo: '${oc.env:NO_SUCH_VARIABLE,${oc.env:HF_TOKEN}}'}",
    "a token from parts": "a: HF_TOKEN\nhub: {repo: '${oc.env:${a}}'}",
    "a token in an option": "defaults:\n  - override /dataset: ${oc.env:HF_TOKEN}\n",
    "a value that doubles": "a0: xxxxxxxxxx\n" + "".join(f"a{i}: '${{a{i - 1}}}${{a{i - 1}}}'\n" for i in range(1, 40)),
    "bytes": "notes: !!binary aGVsbG8=",
    "permission": "allowed_targets: [os]\nloss: {_target_: os.mkdir, path: harm}",
    "permission from Hydra": "hydra: {overrides: {task: ['allowed_targets=[os]']}}\n"
    "allowed_targets: [os]\nloss: {_target_: os.mkdir, path: harm}",
    "permission elsewhere": "allowed_targets: ${a}\na: [os]\nloss: {_target_: os.mkdir, path: harm}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORBIDDEN)
@pytest.mark.usefixtures("harm")
def test_no_interpolation_calls_or_reads_what_it_should_not(name, tmp_path, capsys):
    folder = theirs(tmp_path, FORBIDDEN[name])
    typed = ["--config-dir", folder, "experiment=theirs"]
    doors = [
        (train.cli, typed),
        (check.main, typed),
        (check.main, ["--memory", *typed]),
        (train.cli, [*typed, "seed=0,1", "-m"]),
    ]
    for command, arguments in some(doors, [*FORBIDDEN].index(name)):
        end_of(command, arguments, capsys)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("allowed_targets: [os]", "allowed_targets"),
        ("allowed_targets: os", "allowed_targets"),
        ("a: [os]\nallowed_targets: ${a}", "allowed_targets"),
        ("a: {'0': [os]}\nb: ${now:%M}\nallowed_targets: '${a.${b}}'", "allowed_targets"),  # nothing for a minute
        ("dataset: {follow_links: true}", "dataset.follow_links"),
        ("dataset: {follow_links: 1}", "dataset.follow_links"),
        ("a: true\ndataset: {follow_links: '${a}'}", "dataset.follow_links"),
        ("a: {path: ., follow_links: true}\ndataset: ${a}", "dataset.follow_links"),
    ],
)
def test_a_file_gives_itself_no_permission(text, key, tmp_path):
    arguments = [search_path([f"file://{theirs(tmp_path, text)}"]), "experiment=theirs", "dataset=folder"]
    with pytest.raises(ConfigError, match=f"^{key}=.* comes from a file; it counts on the command line only"):
        compose(arguments)
    if "dataset: $" not in text:
        compose([*arguments, f"++{key}={'true' if 'links' in key else '[os]'}"])


OF_HYDRA = {
    "a callback": "hydra: {callbacks: {harm: {_target_: os.mkdir, path: harm}}}",
    "another guard": "hydra: {callbacks: {guard: {_target_: my_losses.Mine}}}",
    "a launcher": "hydra: {launcher: {_target_: my_losses.Mine}}",
    "a launcher's command": "hydra: {launcher: {command: touch harm}}",
    "a sweeper": "hydra: {sweeper: {_target_: my_losses.Mine}}",
    "a search": "hydra: {sweeper: {params: {seed: '1,2'}}}",
    "an environment": "hydra: {job: {env_set: {LD_PRELOAD: harm}}}",
    "a copied environment": "hydra: {job: {env_copy: [HF_TOKEN]}}",
    "a copied variable that is not set": "hydra: {job: {env_copy: [NO_SUCH_VARIABLE]}}",
    "a folder": "hydra: {run: {dir: harm}}",
    "a sweep's folder": "hydra: {sweep: {dir: harm}}",
    "a subfolder": "hydra: {output_subdir: ../../harm}",
    "another current folder": "hydra: {job: {chdir: true}}",
    "a log handler": "hydra: {job_logging: {handlers: {file: {(): os.mkdir, path: harm}}}}",
    "a log file": "hydra: {job_logging: {handlers: {file: {filename: harm}}}}",
    "Hydra's log": "hydra: {hydra_logging: {handlers: {console: {(): os.mkdir, path: harm}}}}",
    "a mode": "hydra: {mode: MULTIRUN}",
    "a search path": "hydra: {searchpath: ['file:///']}",
    "what was typed": "hydra: {overrides: {task: ['allowed_targets=[numpy]']}}",
    "what was typed to Hydra": "hydra: {overrides: {hydra: ['hydra.launcher.command=touch harm']}}\n"
    "seed: 1\nhydra.launcher: 1",
    "a package": "defaults:\n  - /experiment/other@hydra.callbacks: harm\n",
    "a package of the root": "defaults:\n  - /loss/callback@_global_\n",
    "a run's name": "run: ../../harm",
    "an absolute run": "run: /nowhere/harm",
    "a run at home": "run: ~/harm",
    "an absolute sweep": "sweep: /nowhere/harm",
    "a sweep's name": "sweep: ../harm",
    "a run's name from parts": "a: ..\nrun: x/${a}/${a}/${a}/harm",
    "a run's name by the name of the program": "x: {app: fine, train: ../../harm, t2i: ../../harm}\n"
    "run: ${x.${hydra.job.name}}",
    "a sweep's name by a setting that varies": "x: {s0: fine, s1: ../../harm, s2: ../../harm}\n"
    "k: s${seed}\nsweep: ${x.${k}}",
    "a run's name that no folder can have": 'run: "a\\0b"',
    "a run's name of half a letter": 'run: "a\\ud800b"',
    "a preset by the clock": "defaults:\n  - optional /cb@hydra.callbacks: c${now:%S}\n",
    "a preset by the clock, merged": "a: &a\n  defaults: [{optional /cb@hydra.callbacks: 'c${now:%S}'}]\n<<: *a\n",
    "a preset by the clock, in a list of pairs": "defaults: !!omap [{optional /cb@hydra.callbacks: 'c${now:%S}'}]\n",
    "an option's name": "defaults:\n  - override /loss: ../loss/callback\n",
}


DOORS = ("--config-dir", "-cd", "--config-d", "hydra.searchpath", "a sweep", "a sweep of options")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "door"), [*((name, "--config-dir") for name in OF_HYDRA), *(("a callback", door) for door in DOORS[1:])]
)
@pytest.mark.usefixtures("harm")
def test_hydras_own_settings_count_in_conf_and_on_the_command_line_only(name, door, tmp_path, capsys):
    folder = theirs(tmp_path, OF_HYDRA[name])
    theirs(tmp_path, "_target_: my_losses.Mine\n", group="hydra/launcher")
    for place, text in (
        ("experiment/other/harm", "harm: {_target_: my_losses.Mine}\n"),
        ("loss/callback", "hydra: {callbacks: {harm: {_target_: my_losses.Mine}}}\n"),
    ):
        file = tmp_path / "theirs" / f"{place}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    doors = {
        "hydra.searchpath": [f"hydra.searchpath=[file://{folder}]", "experiment=theirs"],
        "a sweep": ["-m", "--config-dir", folder, "experiment=theirs", "seed=1,2"],
        "a sweep of options": ["--config-dir", folder, "experiment=smoke,theirs", "loss=mse,p2", "--multirun"],
    }
    line = end_of(train.cli, doors.get(door, [door, folder, "experiment=theirs"]), capsys)
    if door == "a sweep" and name in ("a run's name", "a run's name from parts"):
        return  # unused in a sweep; the run itself is refused for another reason
    assert not (tmp_path / "multirun").exists(), line


UNREADABLE = {
    "billions of values": "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
    "a value that holds itself": "a: &a [*a]\n",
    "a deep value": "a: " + "[" * 3000 + "]" * 3000 + "\n",
    "a large file": "a: " + "x" * 2_000_000 + "\n",
    "bytes": "a: \udcff\n",
    "an option that includes itself": "defaults: [theirs]\n",
    "a file above": "defaults: [/../outside/private@notes, _self_]\n",
    "a link to a file": "defaults: [/linked@notes, _self_]\n",
    "a link to a folder": "defaults: [/elsewhere/private@notes, _self_]\n",
    "no end": "defaults: [/endless@notes, _self_]\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.usefixtures("harm")
def test_a_file_that_cannot_be_read_at_once_or_leads_elsewhere_is_refused(name, tmp_path, capsys):
    folder = theirs(tmp_path, "steps: 1\n")
    (tmp_path / "theirs" / "experiment" / "theirs.yaml").write_bytes(
        (GLOBAL + UNREADABLE[name]).encode(errors="surrogateescape")
    )
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "private.yaml").write_text("password: of-somebody\n")
    (tmp_path / "theirs" / "linked.yaml").symlink_to(tmp_path / "outside" / "private.yaml")
    (tmp_path / "theirs" / "elsewhere").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "theirs" / "endless.yaml")
    line = end_of(train.cli, ["--config-dir", folder, "experiment=theirs"], capsys)
    assert "theirs" in line or "an option includes itself" in line


def test_a_few_aliases_and_a_name_that_was_typed_are_fine(tmp_path):
    folder = theirs(tmp_path, "samples:\n  prompts: &words [a heart, a cat]\nx: m\nnotes: *words\n")
    check_foreign_files(["--config-dir", folder, "experiment=theirs", "tracker.project=of-${x}", "run=mine"])


@pytest.mark.parametrize("option", ["theirs", "racing"])
def test_a_preset_that_a_file_chooses_has_no_effect(option, tmp_path):
    """Hydra takes the first choice of a preset, which is that of conf/config.yaml or the command line."""
    folder = theirs(tmp_path, f"defaults:\n  - override /hydra/launcher: {option}\n")
    theirs(tmp_path, "_target_: my_losses.Mine\n", group="hydra/launcher")
    overrides = [search_path([f"file://{folder}"]), "experiment=theirs"]
    assert composed(overrides, return_hydra_config=True).hydra.runtime.choices["hydra/launcher"] == "processes"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["hydra/launcher=theirs"],
        ["+hydra/callbacks=theirs"],
        ["experiment=glob(*)", "-m"],
        ["hydra.sweeper.params={experiment: 'theirs,smoke'}", "-m"],
        ["+experiment@hydra.callbacks=theirs"],
    ],
)
@pytest.mark.usefixtures("harm")
def test_presets_of_hydra_come_from_conf_only(arguments, tmp_path, capsys):
    folder = theirs(tmp_path, "hydra: {callbacks: {harm: {_target_: my_losses.Mine}}}\n")
    for group in ("launcher", "callbacks"):
        theirs(tmp_path, "_target_: my_losses.Mine\n", group=f"hydra/{group}")
    end_of(train.cli, ["--config-dir", folder, *arguments], capsys)
    assert not (tmp_path / "multirun").exists()


@pytest.mark.parametrize("flag", ["--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun"])
@pytest.mark.usefixtures("harm")
def test_the_main_configuration_is_that_of_t2i(flag, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("hydra: {callbacks: {harm: {_target_: my_losses.Mine}}}\n")
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    value = {"--config-name": "other", "-cn": "other", "--experimental-rerun": "config.pickle"}.get(flag, str(tmp_path))
    assert flag.startswith("-c") or flag in end_of(train.cli, [flag, value], capsys)
    end_of(train.cli, [flag, value, "--config-dir", str(tmp_path)], capsys)


@pytest.mark.slow
def test_what_conf_and_the_command_line_say_of_hydra_counts(tmp_path):
    """Next to options of the user's own, which say nothing of it."""
    folder = theirs(tmp_path, "steps: 10\n")
    for arguments in (
        ["experiment=theirs"],
        ["experiment=smoke"],
        ["experiment=snr_gamma", "-m"],
        ["experiment=theirs", "hydra/launcher=racing", "hydra.launcher.n_jobs=2", "seed=1,2", "-m"],
        ["experiment=theirs", "hydra.run.dir=elsewhere", "run=../elsewhere"],
        ["experiment=theirs,smoke", "loss=mse,p2", "optimizer.lr=1e-4,1e-3", "-m"],
    ):
        check_foreign_files(["--config-dir", folder, *arguments])
    check_foreign_files(["--config-name", "config", "--config-path", str(CONF)])


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "run", "steps=2", "sample_every=0")


RUN_FOLDERS = [name for name in ATTEMPTS if name not in ("late", "not recursive", "converted", "another group")]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN_FOLDERS)
@pytest.mark.usefixtures("harm")
def test_a_run_folder_calls_only_what_its_groups_take(name, finished, tmp_path, capsys):
    """A stranger's run, sampled from, evaluated, compared and pushed; its checkpoint is read with its configuration."""
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("model"))
    cfg = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    turn = RUN_FOLDERS.index(name)
    for group in some(("model", "adapter", "scheduler"), turn):
        mixed = cfg | {"allowed_targets": ["os", "torch", "t2i", "functools"], group: attempts(tmp_path)[name]}
        OmegaConf.save(OmegaConf.create(mixed), folder / "config.yaml")
        end_of(sample.main, [str(folder), "red apple", "--out", str(tmp_path / "out.png")], capsys)
    doors = [
        (evaluate.main, [str(folder), "evaluation.seeds=[0]"]),
        (compare.main, [str(folder)]),
        (push.main, [str(folder), "--repo", "mine"]),
    ]
    for command, arguments in some(doors, turn):
        with pytest.raises(SystemExit):
            failing.run(command, arguments)
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "file"),
    [
        ({"_class_name": ["evil", "X"]}, "evil.py"),
        ({"_class_name": "evil"}, "pipeline.py"),
        ({"unet": ["evil", "X"]}, "unet/evil.py"),
        ({"scheduler": ["evil", "X"]}, "scheduler/evil.py"),
        ({"unet": ["os", "system"]}, "evil.py"),
    ],
)
def test_a_model_brings_no_code(changes, file, harm, tmp_path, capsys):
    """Whether it is sampled from, or trained, which reads the classes of its family only."""
    model = tmp_path / "model"
    shutil.copytree(BUNDLED["tiny"], model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | changes))
    (model / file).write_text(f"open({str(harm)!r}, 'w')\nclass X:\n    pass\n")
    assert "can't be loaded" in end_of(sample.main, [str(model), "a heart"], capsys)
    try:
        stable_diffusion.load(str(model))
    except ConfigError as error:
        assert "holds a" in str(error) or "can't be loaded" in str(error)  # noqa: PT017


@pytest.fixture(scope="module")
def strange_model(tmp_path_factory):
    """A function that copies the bundled model, merges changes into one of its JSON files, and returns the folder."""

    def make(file, changes):
        model = tmp_path_factory.mktemp("models") / "model"
        shutil.copytree(BUNDLED["tiny"], model, copy_function=os.symlink)
        path = model / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.unlink(missing_ok=True)
        path.write_text(json.dumps(content | changes) if isinstance(changes, dict) else changes)
        return model

    return make


def without_weights(model):
    """As `t2i check --memory` reads it."""
    with shapes_only():
        read = stable_diffusion.load(model)
        return read.denoiser, read.autoencoder, read.text_encoders, read.tokenizers


KERNEL = "evil/kernel"
ELSEWHERE = {
    "a module of Diffusers": ("model_index.json", {"unet": ["pipeline_utils", "os"]}),
    "a function of Diffusers": ("model_index.json", {"unet": ["pipeline_utils", "snapshot_download"]}),
    "a module that is imported": ("model_index.json", {"unet": ["subprocess", "Popen"]}),
    "a module of t2i": ("model_index.json", {"unet": ["t2i.sweeps.process", "run_job"]}),
    "a part of three words": ("model_index.json", {"unet": ["diffusers", "UNet2DConditionModel", "x"]}),
    "a number for a class": ("model_index.json", {"unet": ["diffusers", 7]}),
    "no class": ("model_index.json", {"_class_name": None}),
    "a kernel": ("text_encoder/config.json", {"_attn_implementation": KERNEL}),
    "a public kernel": ("text_encoder/config.json", {"attn_implementation": f"{KERNEL}@main:name"}),
    "a paged kernel": ("text_encoder/config.json", {"_attn_implementation_internal": f"paged|{KERNEL}"}),
    "a kernel by part": ("text_encoder/config.json", {"_attn_implementation": {"": "sdpa", "text_config": KERNEL}}),
    "a kernel of a part": ("text_encoder/config.json", {"text_config": {"a": [{"_attn_implementation": KERNEL}]}}),
    "experts": ("text_encoder/config.json", {"_experts_implementation": KERNEL}),
    "an adapter": ("text_encoder/adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "evil/base"}),
    "other weights": ("text_encoder/config.json", {"transformers_weights": "../../private.safetensors"}),
    "other shards": ("unet/diffusion_pytorch_model.safetensors.index.json", {"weight_map": {"a": "/private/a.bin"}}),
    "a backbone": ("text_encoder/config.json", {"backbone": "evil/base", "use_pretrained_backbone": True}),
    "another tokenizer": ("tokenizer/tokenizer_config.json", {"fast_tokenizer_files": ["../../x/tokenizer.4.json"]}),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_model_leads_to_no_code_or_files_elsewhere(name, strange_model, monkeypatch):
    """Whether it is sampled from or trained; nothing is loaded."""
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", trained)
    model = strange_model(*ELSEWHERE[name])
    for load in (load_pipeline, stable_diffusion.load, without_weights):
        with pytest.raises(
            ConfigError, match=r"can't be loaded: its .* leads to code or files that are not the model's"
        ):
            load(str(model))


def test_an_automatic_class_with_code_is_refused(strange_model):
    model = strange_model("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.X"}, "model_type": "evil"})
    stable_diffusion.load(str(model)).parts.config("text_encoder")  # of a given class, which reads no auto_map
    index = json.loads((model / "model_index.json").read_text()) | {"text_encoder": ["transformers", "AutoModel"]}
    (model / "model_index.json").unlink()
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"its text_encoder/config.json .* \(auto_map: evil.X\)"):
        load_pipeline(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "changes"),
    [
        *(("model_index.json", text) for text in ("[]", "", "{", "null", '{"_class_name": "StableDiffusionPipeline"}')),
        *(("text_encoder/config.json", text) for text in ("[]", "7", "[" * 200_000)),
        ("text_encoder/config.json", {"quantization_config": {"quant_method": "gptq"}}),
        ("text_encoder/config.json", {"hidden_size": -1}),
        ("text_encoder/config.json", {"hidden_act": "os.system"}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**8}),
        ("unet/config.json", {"layers_per_block": [2, 10**8]}),
        ("tokenizer/tokenizer.json", "[]"),
        *(("tokenizer/tokenizer_config.json", {"model_max_length": length}) for length in (10**9, -1, "x", 1.5)),
        ("unet/config.json", {"block_out_channels": [-1]}),
        ("unet/config.json", {"down_block_types": 7}),
        ("vae/config.json", {"act_fn": ["os"]}),
    ],
)
def test_a_strange_model_is_named_in_one_line(file, changes, strange_model):
    model = strange_model(file, changes)
    with pytest.raises(ConfigError, match=f"^model.path={model}"):
        load_pipeline(model)
    if "quantization_config" not in changes and '"_class_name"' not in changes:  # weights, and parts that are assumed
        with pytest.raises(ConfigError, match=f"^model.path={model}"):
            without_weights(str(model))


def test_a_model_that_fails_when_it_samples_is_named(strange_model, capsys):
    model = strange_model("scheduler/scheduler_config.json", {"trained_betas": [0.1]})
    line = end_of(sample.main, [str(model), "a heart", "--steps", "2"], capsys)
    assert f"model.path={model} can't be sampled from: IndexError: index" in line


def test_settings_in_lora_weights_import_nothing(tmp_path, capsys):
    cfg = OmegaConf.to_container(compose(["model.path=tiny", "scheduler=ddpm"]), resolve=True)
    OmegaConf.save(OmegaConf.create(cfg), tmp_path / "config.yaml")
    (tmp_path / "model").mkdir()
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    settings = {"r": 4, "lora_alpha": 4, "target_modules": [name], "megatron_config": {"a": 1}, "megatron_core": "this"}
    save_file(
        {f"unet.{name}.lora_{side}.weight": torch.zeros(shape) for side, shape in (("A", (4, 8)), ("B", (8, 4)))},
        tmp_path / "model" / AVERAGED,
        metadata={
            "format": "pt",
            "lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in settings.items()}),
        },
    )
    assert f"{AVERAGED} can't be loaded" in end_of(sample.main, [str(tmp_path), "a heart"], capsys)
    assert "this" not in sys.modules


def test_vocabularies_come_from_the_folder_of_the_model(strange_model, tmp_path):
    """Transformers reads no file that tokenizer_config.json names."""
    names = {"vocab_file": str(tmp_path / "x"), "tokenizer_file": str(tmp_path / "x"), "merges_file": "/etc/hostname"}
    model = strange_model("tokenizer/tokenizer_config.json", names)
    read = stable_diffusion.load(str(model)).tokenizers["tokenizer"]
    assert read.get_vocab() == stable_diffusion.load("tiny").tokenizers["tokenizer"].get_vocab()


@pytest.mark.slow
@pytest.mark.parametrize("text", ["${oc.env:HF_TOKEN}", "${oc.create:{_target_: os.mkdir}}", "${model.path}"])
@pytest.mark.usefixtures("harm")
def test_a_run_folder_holds_no_interpolation(text, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("model"))
    cfg = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    cfg["samples"]["prompts"] = [text]
    OmegaConf.save(OmegaConf.create(cfg), folder / "config.yaml")
    for command, arguments in ((sample.main, [str(folder), "x"]), (push.main, [str(folder), "--repo", "mine"])):
        assert "interpolation" in end_of(command, arguments, capsys)


def test_every_other_resolver_is_refused():
    OmegaConf.register_new_resolver("somebodys", lambda: 1, replace=True)
    restrict()
    for name in set(registered()) - {*OURS, *HARMLESS}:
        with pytest.raises(Exception, match="can't be used in a configuration of t2i"):
            OmegaConf.create({"a": f"${{{name}:a}}"}).a  # noqa: B018
    assert {"oc.create", "oc.decode", "oc.select", "oc.deprecated", "somebodys"} <= {*registered()}


def test_conf_reads_only_variables_of_the_list():
    text = "".join(file.read_text() for file in CONF.rglob("*.yaml"))
    names = {part.split("}")[0].split(",")[0] for part in text.split("${oc.env:")[1:]}
    assert names <= set(READABLE)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "my_password", "GITHUB_TOKEN_2"]
)
def test_secrets_are_blanked(name, monkeypatch):
    value = 'a"secret\\value/ü'
    monkeypatch.setenv(name, value)
    for text in (value, json.dumps(value), repr(value), json.dumps(value, ensure_ascii=False)):
        assert "secret\\" not in redact(f"<{text}>")
        assert BLANK in redact(text)
    assert redact_all({"a": [value, 1, {value: None}]}) == {"a": [BLANK, 1, {BLANK: None}]}


@pytest.mark.parametrize("name", ["KAGGLE_KEY", "DB_PASS", "GITHUB_PAT"])
@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("correct horse battery staple", "battery"),
        ("it's-a:pass|phrase", "phrase"),
        ("a\\b'c\"pass99", "pass99"),
        (SECRET, "klmnop"),
    ],
)
def test_secrets_are_blanked_however_they_are_written(name, value, part, monkeypatch):
    """YAML breaks lines and doubles quotes, a shell and Hydra escape quotes, Markdown escapes signs."""
    monkeypatch.setenv(name, f"{value}\n")  # as read from a file
    around = f"{'word ' * 14}{value} {'word ' * 14}"
    typed = value.replace("\\", "\\\\").replace("'", "\\'")
    ways = {
        "YAML": OmegaConf.to_yaml(OmegaConf.create([around, {"a": {"b": around[5:]}}, around[2:], value])),
        "quoted YAML": OmegaConf.to_yaml(OmegaConf.create([f"{around}\x01", f"a: {around}"])),
        "shell": shlex.join(["t2i", around]),
        "Hydra": f"samples.prompts=['{typed}']",
        "JSON of Hydra": json.dumps([f"samples.prompts=['{typed}']"]),
        "Markdown": plain(value),
    }
    for way, text in ways.items():
        assert part in text, way
        assert part not in redact(text), way


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DB_PASSWORD", " " * 12),
        ("HF_TOKEN", "short"),
        ("TOKENIZERS_PARALLELISM", "falsefalse"),
        ("HF_TOKEN_PATH", "/home/me/token"),
        ("PWD", "/home/me"),
    ],
)
def test_ordinary_values_are_left_alone(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert redact(value) == value


@pytest.mark.usefixtures("logging_as_before")
def test_logs_and_crashes_hold_no_secret(monkeypatch, caplog, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    clean_logs()
    logging.getLogger("any").warning("the answer to %s was %s", SECRET, {"key": SECRET})
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("any").exception("failed")

    def crash(arguments):
        raise RuntimeError(f"no answer to {SECRET}") from ValueError(SECRET)

    with pytest.raises(SystemExit):
        failing.run(crash, [])
    error = capsys.readouterr().err
    assert SECRET not in caplog.text + error
    assert caplog.text.count(BLANK) == 3
    logging.getLogger("t2i.any").warning("%s is left out", "a\x1b[2Jb")
    assert "a\ufffd[2Jb is left out" in caplog.text
    assert "no answer to [secret]" in error


@pytest.mark.slow
@pytest.mark.usefixtures("logging_as_before")
def test_a_secret_that_was_typed_is_in_no_file_of_the_run(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    arguments = [*small, "run=x", "steps=1", f"samples.prompts=[{SECRET}]", "tracker=tensorboard", f"sweep={SECRET}"]
    with pytest.raises(SystemExit) as end:
        failing.run(train.cli, arguments)
    assert not end.value.code
    holding = [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert not holding


def test_the_tests_that_the_security_page_names_exist():
    root = CONF.parent
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (root / "SECURITY.md").read_text())
    assert len(named) >= 10
    assert not [name for file, name in named if f"def {name}(" not in (root / file).read_text()]
