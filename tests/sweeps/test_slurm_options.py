"""What sbatch is asked for, which options are refused before anything is submitted, and when a job is in vain."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import t2i.config.resolvers  # noqa: F401 - ${micro_batch:}
from t2i.config import CONF, ConfigError
from t2i.sweeps.job import SweepError
from t2i.sweeps.slurm_cluster import submitted
from t2i.sweeps.slurm_queue import parse
from t2i.sweeps.slurm_script import SlurmOptions
from t2i.sweeps.slurm_task import Vain, newest_step


def options(**changed) -> SlurmOptions:
    preset = OmegaConf.to_container(OmegaConf.load(CONF / "hydra/launcher/slurm.yaml"))
    return SlurmOptions(**{key: value for key, value in preset.items() if key != "_target_"} | changed)


def test_the_preset_in_sbatch_s_words():
    assert set(options().flags("gamma", jobs=5)) == {
        *("--job-name=gamma", "--array=0-4%16", "--time=1440", "--nodes=1", "--ntasks-per-node=1"),
        *("--gpus-per-node=1", "--cpus-per-task=8", "--mem=32768M", "--signal=USR2@120"),
        *("--requeue", "--open-mode=append"),
    }


def test_an_option_that_stands_in_the_place_of_another_and_further_ones():
    flags = options(
        gres="gpu:a100:2", mem_per_cpu="4G", partition="gpu", timeout_min=None, additional_parameters={"nice": 0}
    ).flags("gamma", jobs=1)
    assert {"--gres=gpu:a100:2", "--mem-per-cpu=4G", "--partition=gpu", "--nice=0"} <= set(flags)
    assert not [flag for flag in flags if flag.startswith(("--gpus-per-node", "--mem=", "--time"))]
    exclusive = options(additional_parameters={"exclusive": True, "requeue": False}).flags("gamma", jobs=1)
    assert "--exclusive" in exclusive
    assert "--requeue" not in exclusive


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"signal_delay_s": 540, "timeout_min": 10}, "signal_delay_s=540 leaves no time to train of timeout_min=10"),
        ({"tasks_per_node": 4}, "each process needs a GPU of its own, and gpus_per_node=1; set it to 4, or to 0"),
        ({"tasks_per_node": 4, "gpus_per_node": "a100:2"}, "gpus_per_node=a100:2"),
        ({"nodes": 0}, "hydra.launcher.nodes=0 must be a number, at least 1"),
        ({"array_parallelism": "4"}, "array_parallelism=4 must be a number"),
    ],
)
def test_what_can_t_work_is_refused_by_name(changed, message):
    with pytest.raises(SweepError, match=message):
        options(**changed)


def test_batches_that_the_processes_can_t_divide_are_refused():
    two = options(nodes=2, gpus_per_node=0)
    two.refuse_batches(OmegaConf.create({"batch_size": 8, "micro_batch_size": "${micro_batch:8,${batch_size}}"}))
    with pytest.raises(ConfigError, match="batch_size=8 is not a multiple of micro_batch_size=8 × 2 processes"):
        two.refuse_batches(OmegaConf.create({"batch_size": 8, "micro_batch_size": 8}))


def test_the_script_quotes_what_it_is_given():
    script = options(setup=["module load cuda"]).script(Path("/data/a sweep/.slurm/x"), paths="/home/o'neil/t2i")
    assert "\nmodule load cuda\n" in script
    assert "'/data/a sweep/.slurm/x'" in script
    assert """export PYTHONPATH='/home/o'"'"'neil/t2i'\n""" in script


def test_squeue_s_lines():
    entries = parse("12|3|RUNNING|None|/a b/.slurm/x/job.sh\n13|N/A|PENDING|Priority|(null)\n")
    assert entries["12_3"].script == "/a b/.slurm/x/job.sh"
    assert entries["13_N/A"].reason == "Priority"
    assert not any(entry.ended for entry in entries.values())


def test_a_job_is_in_vain_after_two_limits_or_some_stops_without_progress(tmp_path):
    vain = Vain(tmp_path / "0.json", retries=2)
    stops = [(False, True), (True, True), (False, True), (False, False), (False, True)]
    assert [bool(vain.reason(progress, limit, step=4)) for progress, limit in stops] == [False] * 4 + [True]
    others = Vain(tmp_path / "1.json", retries=2)
    assert [others.reason(False, False, step=-1) for _ in range(2)] == [None, None]
    assert "stopped 3 times without getting any further, each time before the first" in others.reason(False, False, -1)


@pytest.mark.parametrize("content", ["", "[]", '{"stops": "x"}', '{"stops": -1, "limits": null}', "[" * 100_000])
def test_a_count_that_a_crash_has_damaged_begins_anew(content, tmp_path):
    (tmp_path / "0.json").write_text(content)
    vain = Vain(tmp_path / "0.json", retries=1)
    assert [bool(vain.reason(False, False, step=4)) for _ in range(2)] == [False, True]


def test_only_checkpoints_are_steps(tmp_path):
    for name in ("step-000003", "step-²", "step-000009.tmp", "step-x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 3


@pytest.mark.parametrize("content", ["", "[]", "{", '{"jobs": [3]}', '{"jobs": {"a": 1}}', '{"jobs": [{"folder": 3}]}'])
def test_a_damaged_submission_is_named(content, tmp_path):
    (tmp_path / "jobs.json").write_text(content)
    with pytest.raises(ConfigError, match=r"jobs.json .*; end its jobs with scancel, and delete its folder"):
        submitted(tmp_path)


def test_a_script_whose_name_has_line_breaks_costs_its_own_line_only():
    assert list(parse("11|0|RUNNING|None|/a\nb/job.sh\n12|3|RUNNING|None|/c/job.sh\n")) == ["11_0", "12_3"]
