"""A process's place among others, as flags and Slurm tell it."""

import argparse

import pytest

from jaxvlm.errors import UserError
from jaxvlm.training.cluster import Place, add_flags, first_host, place, tasks_per_node

TASK = {
    "SLURM_JOB_ID": "40321", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip


def found(*flags, **changes):
    parser = argparse.ArgumentParser()
    add_flags(parser)
    environment = {name: value for name, value in (TASK | changes).items() if value is not None}
    return place(parser.parse_args(flags), environment)


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (2, 3)),
        ({"SLURM_GPUS_ON_NODE": "2"}, (1,)),
        # Slurm itself gave the task its own, one or several.
        ({"CUDA_VISIBLE_DEVICES": "1", "SLURM_GPUS_ON_NODE": "2"}, None),
        ({"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_ON_NODE": "8"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, (2, 3)),
    ],
)
def test_tasks_of_a_node_share_its_gpus(changes, devices):
    assert found(**changes) == Place("gpu07:20321", 4, 3, devices)


def test_a_process_a_node_has_all_its_gpus():
    changes = {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    }  # fmt: skip
    assert found(**changes) == Place("gpu07:20321", 2, 1, None)


def test_a_batch_script_or_one_task_is_no_task_among_others():
    assert found(SLURM_STEP_NUM_TASKS=None) is None
    assert found(SLURM_STEP_NUM_TASKS="1") is None


def test_flags_and_the_environment_may_name_another_coordinator():
    given = found("--coordinator", "login:9", "--num_processes", "2", "--process_id", "0")
    assert given == Place("login:9", 2, 0)
    assert found(JAX_COORDINATOR_ADDRESS="127.0.0.1:7").coordinator == "127.0.0.1:7"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_PROCID": None}, "SLURM_PROCID"),
        ({"SLURM_STEP_NUM_TASKS": "many"}, "many"),
        ({"SLURM_STEP_TASKS_PER_NODE": "0"}, "not whole"),
        ({"SLURM_PROCID": "-1"}, "task -1 of"),
        ({"SLURM_PROCID": "99"}, "task 99 of"),
        ({"SLURM_STEP_NODELIST": ""}, "not whole"),
        ({"JAX_COORDINATOR_ADDRESS": "node1"}, "JAX_COORDINATOR_ADDRESS node1: expected host:port"),
        ({"SLURM_GPUS_ON_NODE": "gpu:2"}, "gpu:2"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2"}, "cannot share its 3 GPUs evenly"),
    ],
)
def test_what_slurm_says_wrongly_is_told(changes, message):
    with pytest.raises(UserError, match=message):
        found(**changes)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a1", "a1"),
        ("a1,b2", "a1"),
        ("a[001-015],b2", "a001"),
        ("a[3,7-9]", "a3"),
        ("a[3-4]-ib,b", "a3-ib"),
        ("a,b[1-2]", "a"),
        ("a[1-2][3-4]", "a13"),
        ("rack[1-2]node[3,5],b", "rack1node3"),
    ],
)
def test_the_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


def test_slurms_counts_of_tasks():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
