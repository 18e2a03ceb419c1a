"""What processes of `srun` are told of each other, and when their job ends."""

import time

import pytest

from t2i.distributed.ranks import ranks_from_slurm
from t2i.distributed.slurm import ends_at

TASK = {  # the third of seven, on two nodes
    "SLURM_JOB_ID": "20001",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_NODELIST": "gpu[03-04,9]-ib",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),3",
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}


def test_a_task_learns_its_ranks_and_where_the_first_one_is():
    assert ranks_from_slurm(TASK, address=str.upper) == {
        "RANK": "2",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "GPU03-IB",
        "MASTER_PORT": "20001",
    }
    assert ranks_from_slurm(TASK | {"SLURM_NODEID": "2"}, address=str)["LOCAL_WORLD_SIZE"] == "3"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("a,b", "a"), ("a[1-2],b", "a1"), ("r[2-3]n[08,10]", "r2n08"), ("x[7],y[1-2]", "x7")],
)
def test_the_first_node_of_a_list(nodes, first):
    assert ranks_from_slurm(TASK | {"SLURM_STEP_NODELIST": nodes}, address=str)["MASTER_ADDR"] == first


def test_two_jobs_on_a_node_and_two_steps_of_a_job_have_ports_of_their_own():
    variants = [TASK, TASK | {"SLURM_JOB_ID": "20002"}, TASK | {"SLURM_STEP_ID": "1"}]
    assert len({ranks_from_slurm(each, address=str)["MASTER_PORT"] for each in variants}) == 3


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TASK | {"SLURM_STEP_NUM_TASKS": "1"},
        TASK | {"WORLD_SIZE": "4"},  # of torchrun, which srun has started
        {name: value for name, value in TASK.items() if "STEP" not in name} | {"SLURM_NTASKS": "7"},  # a batch script
    ],
)
def test_what_is_no_task_among_others_is_left_alone(environment):
    assert ranks_from_slurm(environment, address=str) == {}


def test_what_is_set_by_hand_and_gpus_of_one_s_own_are_respected():
    by_hand = TASK | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "SLURM_LOCALID": "1"}
    found = ranks_from_slurm(by_hand | {"CUDA_VISIBLE_DEVICES": "3"}, address=str)
    assert found["LOCAL_RANK"] == "0", "the only GPU that it sees"
    assert not {"MASTER_ADDR", "MASTER_PORT"} & found.keys()
    assert ranks_from_slurm(by_hand | {"CUDA_VISIBLE_DEVICES": "0,1"}, address=str)["LOCAL_RANK"] == "1"


def test_the_end_of_a_job_comes_from_its_environment_or_from_scontrol():
    assert ends_at({}) is None
    assert ends_at({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1800000000"}) == 1800000000
    then = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(1800000000))
    assert ends_at({"SLURM_JOB_ID": "7"}, ask=lambda *job: {"EndTime": then} if job == ("job", "7") else {}) == 1.8e9
    array = {"SLURM_JOB_ID": "5", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}
    assert ends_at(array, ask=lambda *job: {"EndTime": then} if job == ("job", "5_3") else {}) == 1.8e9
    assert ends_at({"SLURM_JOB_ID": "7"}, ask=lambda *_: {"EndTime": "Unknown"}) is None
    assert ends_at({"SLURM_JOB_ID": "7"}, ask=lambda *_: {}) is None
