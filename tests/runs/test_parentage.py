"""Which run and checkpoint `from` names, what may differ from it, and what is refused with which remedy."""

import json
import shutil

import pytest
from helpers.runs import compose
from omegaconf import OmegaConf

from t2i.comparison.results import read_results
from t2i.config import ConfigError
from t2i.config.keys import flat
from t2i.inspection.deletion import choose
from t2i.runs.changes import changes
from t2i.runs.fork_rules import check_fork, open_parent
from t2i.runs.parentage import Parent, find_parent, lineage, release, reserve, reserved

STATE = {"steps": 1000, "lr_scheduler.num_training_steps": 1000}


@pytest.fixture(scope="module")
def cfg():
    return compose("steps=1000")


@pytest.fixture
def base(cfg, tmp_path, monkeypatch):
    """multirun/base with checkpoints of the steps 500 and 1000, which hold nothing but their manifests."""
    monkeypatch.chdir(tmp_path)
    return write(cfg, tmp_path / "multirun" / "base", [500, 1000])


def write(cfg, folder, steps, **info):
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text(json.dumps({"step": step, "files": {}, "records": {}}))
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    facts = {"state": "finished", "overrides": ["steps=1000"], "config_hash": "abc"}
    (folder / "run.json").write_text(json.dumps(facts | info))
    return folder


def parent_of(cfg, base, **settings):
    whole = flat(OmegaConf.to_container(cfg, resolve=True))
    return Parent(
        **{"asked": "base", "folder": base, "step": 500, "only": None, "config": whole, "info": {}} | settings
    )


@pytest.mark.parametrize(
    ("asked", "step"),
    [("base", 1000), ("base@500", 500), ("multirun/base@500", 500), ("./multirun/base/@1000", 1000)],
)
def test_a_run_is_named_by_its_name_or_path_with_or_without_a_step(base, tmp_path, asked, step):
    found = find_parent(asked, None, tmp_path / "fork")
    assert (found.folder.resolve(), found.step, found.name) == (base, step, f"base@{step}")
    assert found.checkpoint.is_dir()


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("bse", r"there is no run bse .*did you mean base\? multirun/ has base"),
        (
            "base@700",
            r"step 700 .* is not there \(it holds those of the steps 500, 1000\).*keep_at=\[700\]",
        ),
        ("base@last", r"what stands behind @ must be the number of a step, such as base@1000"),
        ("nowhere/lora.safetensors", r"there is no such file"),
        ("elsewhere/pipeline@500", r"there is no run elsewhere/pipeline"),
    ],
)
def test_what_names_no_checkpoint_is_refused_with_what_there_is(base, cfg, tmp_path, asked, answer):
    asking = cfg.copy()
    asking["from"].run = asked
    with pytest.raises(ConfigError, match=answer):
        open_parent(asking, tmp_path / "fork")


def test_the_exported_folder_of_adapters_is_answered_with_the_file_in_it(base, tmp_path):
    (base / "model").mkdir()
    (base / "model" / "pytorch_lora_weights.safetensors").touch()
    asking = compose("from.run=multirun/base/model", "adapter=lora")
    with pytest.raises(ConfigError, match=r"holds adapters; use from=multirun/base/model/pytorch_lora_weights\.s"):
        open_parent(asking, tmp_path / "fork")


def test_an_unfinished_checkpoint_is_none(base, tmp_path):
    (base / "checkpoints/step-001000/manifest.json").unlink()
    assert find_parent("base", None, tmp_path / "fork").step == 500
    shutil.rmtree(base / "checkpoints")
    with pytest.raises(ConfigError, match="has no complete checkpoint yet"):
        find_parent("base", None, tmp_path / "fork")


def test_a_run_is_not_its_own_parent(base):
    with pytest.raises(ConfigError, match="from=base is the run itself; give the new run a name of its own"):
        find_parent("base", None, base)


CONTRADICTIONS = {
    "model.path": ("other", "its weights are those of another model"),
    "model._target_": ("t2i.models.sana.load", "its weights are those of another model"),
    "adapter._target_": ("t2i.models.lora.LoRA", r"use model\.path=multirun/base/model instead of from"),
    "optimizer._target_": ("lion_pytorch.Lion", "another optimizer has another state.*from.only=weights"),
    "precision.weights": ("stochastic", "the weights are kept in another form"),
    "batch_size": (8, r"the position in the data is counted in batches\); leave it at 32"),
    "scheduler.prediction_type": ("v_prediction", "that of another prediction.*leave it at null"),
    "scheduler._target_": ("t2i.models.schedulers.flow_matching", "that of another prediction"),
    "ema._target_": ("t2i.optim.ema.ScheduleFree", "ema=none goes on without any"),
    "steps": (500, r"steps=500 leaves nothing to train from base@500 on.*use steps=1000"),
    "stop_at": (400, r"stop_at=400 leaves nothing to train"),
}


@pytest.mark.parametrize("key", CONTRADICTIONS)
def test_what_the_state_does_not_allow_is_refused_with_the_remedy(base, cfg, key):
    value, answer = CONTRADICTIONS[key]
    parent = parent_of(cfg, "multirun/base")
    with pytest.raises(ConfigError, match=answer) as refused:
        check_fork(parent, parent.config | {key: value})
    assert key in str(refused.value) or "adapter" in key


@pytest.mark.parametrize("key", ["adapter.rank", "adapter.alpha", "adapter.target_modules", "adapter.text_encoder"])
def test_adapters_stay_as_they_are_but_for_their_dropout(base, cfg, key):
    lora = {"adapter._target_": "t2i.models.lora.LoRA", "adapter.rank": 4, "adapter.alpha": 4}
    parent = parent_of(cfg, base, config=parent_of(cfg, base).config | lora)
    with pytest.raises(ConfigError, match=f"{key}: .* can't be changed from base@500 on .*model.path={parent.folder}"):
        check_fork(parent, parent.config | {key: "other"})
    assert list(check_fork(parent, parent.config | {"adapter.dropout": 0.5})) == ["adapter.dropout"]


def test_the_weights_alone_go_with_another_optimizer_but_not_with_another_rank(base, cfg):
    lora = {"adapter._target_": "t2i.models.lora.LoRA", "adapter.rank": 4}
    parent = parent_of(cfg, base, only="weights", config=parent_of(cfg, base).config | lora)
    check_fork(parent, parent.config | {"optimizer._target_": "lion_pytorch.Lion", "batch_size": 8, "steps": 10})
    with pytest.raises(ConfigError, match=r"adapter\.rank: 4 → 8 can't be changed"):
        check_fork(parent, parent.config | {"adapter.rank": 8})


@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer.lr", 1e-5), ("loss.snr_gamma", 1.0), ("lr_scheduler.decay_share", 0.1), ("caption_dropout", 0.0)],
)
def test_what_the_state_allows_may_change(base, cfg, key, value):
    parent = parent_of(cfg, base)
    assert list(check_fork(parent, parent.config | {key: value, "log_every": 1})) == [key]


def test_a_run_that_has_begun_keeps_its_parent_and_its_step(base, cfg, tmp_path):
    """The parent may write newer checkpoints meanwhile; the run goes on from its own once it has one."""
    record = find_parent("base@500", None, tmp_path / "multirun/fork").record(tmp_path / "multirun/fork")
    fork = write(cfg, tmp_path / "multirun" / "fork", [], state="running", **record)
    assert find_parent("base", None, fork) is not None  # nothing was trained yet: any parent will do
    (fork / "metrics.jsonl").touch()
    assert find_parent("base", None, fork).step == 500
    for asked in ("base@1000", "another@500"):
        with pytest.raises(ConfigError, match=r"holds a run that began with base@500 at step 500, not with"):
            find_parent(asked, None, fork)
    with pytest.raises(ConfigError, match="add from=base@500 to go on with it"):
        find_parent(None, None, fork)
    shutil.rmtree(base / "checkpoints/step-000500")
    with pytest.raises(ConfigError, match=r"the checkpoint of step 500 of multirun/base is not there any more"):
        find_parent("base", None, fork)
    write(cfg, fork, [600], state="running", **record)
    shutil.rmtree(base)
    assert find_parent("base@500", None, fork) is None


def test_the_checkpoint_is_held_until_the_run_has_one_of_its_own(base, tmp_path):
    fork = tmp_path / "multirun" / "fork"
    fork.mkdir()
    parent = find_parent("base@500", None, fork)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in base.rglob("*") if path.is_file()}
    assert reserve(parent, fork) == reserved(fork, 500) == reserve(parent, fork)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in base.rglob("*") if path.is_file()} == before
    shutil.rmtree(base / "checkpoints")
    assert json.loads((reserved(fork, 500) / "manifest.json").read_text())["step"] == 500
    release(fork)
    assert not list(fork.iterdir())


def test_a_lineage_goes_back_to_the_first_run(base, cfg, tmp_path):
    """Of a run that left its trunk before the trunk left its own, only the older steps are shared."""
    child = write(
        cfg,
        tmp_path / "multirun/child",
        [700, 900],
        **find_parent("base@500", None, tmp_path / "x").record(tmp_path / "multirun/child"),
    )
    grandchild = tmp_path / "multirun/sweep/grandchild"
    record = find_parent("child@700", None, grandchild).record(grandchild)
    assert [(path.name, step) for path, step in lineage(grandchild, record)] == [("child", 700), ("base", 500)]
    assert record["parent"]["run"] == "../../child"
    assert find_parent("child@700", "weights", grandchild).record(grandchild)["ancestors"] == []
    assert lineage(grandchild, {"ancestors": [{"run": 3, "step": 1}, {"run": "a"}, "b"]}) == []
    assert child.is_dir()


def test_what_changes_nothing_that_is_computed_is_free(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    before = {"log_every": 10, "sample_every": 1, "samples.prompts": ["a"], "validate_every": 5, "dataset.path": "pics"}
    now = {"log_every": 1, "sample_every": 0, "samples.prompts": ["b"], "validate_every": 9, "dataset.path": "./pics/"}
    assert changes(before, now) == {}
    assert changes({"dataset.path": str(tmp_path / "pics")}, {"dataset.path": "pics"}) == {}
    assert changes({"dataset.path": "moved_away"}, {"dataset.path": "pics"}) == {}  # its fingerprint will tell
    assert list(changes({"model.path": "moved_away"}, {"model.path": "pics"})) == ["model.path"]
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        file.touch()
    lists = [
        [f"{files[0]}:0.8", "pics"],
        ["a.safetensors:0.8", "./pics"],
        ["a.safetensors:0.7", "pics"],
        ["b.safetensors:0.8", "pics"],
    ]
    same = [changes({"model.adapters": lists[0]}, {"model.adapters": other}) == {} for other in lists]
    assert same == [True, True, False, False]
    sources = [[{"path": str(tmp_path / "pics"), "repeats": 2}], [{"path": "pics", "repeats": 2}], [{"path": "pics"}]]
    assert [changes({"dataset.sources": sources[0]}, {"dataset.sources": other}) == {} for other in sources] == [
        True,
        True,
        False,
    ]
    assert changes({"dataset.sources.mine.path": "pics"}, {"dataset.sources.mine.path": "./pics"}) == {}
    counted = {"early_stop.patience": 3}
    assert list(changes(before | counted, now | counted)) == ["validate_every"]


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000])
def test_a_name_that_no_file_can_have_is_no_ancestor(base, cfg, tmp_path, name):
    """A run folder may be a stranger's: whoever reads it goes on."""
    entry = {"run": name, "step": 3, "asked": name}
    fork = write(cfg, tmp_path / "fork", [], ancestors=[entry], parent=entry)
    (fork / "metrics.jsonl").touch()
    assert [folder.name for folder, _ in lineage(fork, json.loads((fork / "run.json").read_text()))] in ([], [name])
    with pytest.raises(ConfigError, match=r"did not begin with|began with"):
        find_parent("base", None, fork)
    choose(read_results([tmp_path]))
