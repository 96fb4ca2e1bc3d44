"""Checks a machine's part in a job as Slurm, Kubernetes and MASTER_ADDR-style environments describe it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.nodes.cluster_environment import ClusterFacts, expand_nodelist, read_cluster, srun_line

JOB = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_JOB_NODELIST": "gpu[01-04]",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NNODES": "4",
    "SLURM_JOB_NAME": "train",
}
TYPED = ("yolo-launch", "run", "train.py", "--", "--data", "my coco.yaml")
BATCH_SCRIPT = {**JOB, "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = {
    **JOB,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[01-04]",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_GPUS_ON_NODE": "8",
}
TRAIN_JOB = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "auto",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "cells-node-0-0.cells",
    "PET_MASTER_PORT": "29400",
    "JOB_COMPLETION_INDEX": "1",
}
PYTORCH_JOB = {"MASTER_ADDR": "cells-master-0", "MASTER_PORT": "23456", "RANK": "2", "WORLD_SIZE": "3"}


def refusal(environ):
    with pytest.raises(LaunchError) as refused:
        read_cluster(environ, TYPED)
    assert refused.value.exit_code == ExitCode.USAGE
    return refused.value


def test_nothing_is_read_from_an_ordinary_environment():
    assert read_cluster({"HOME": "/root", "CUDA_VISIBLE_DEVICES": "0", "MASTER_PORT": "1"}, TYPED) == ClusterFacts()


def test_a_slurm_step_says_everything():
    assert read_cluster(STEP, TYPED) == ClusterFacts(
        source="Slurm job 1234567",
        node_rank=2,
        min_nodes=4,
        max_nodes=4,
        nproc_per_node=8,
        master="gpu01",
        port=19567,
        job_id="1234567.0",
    )


def test_a_step_on_part_of_its_job_counts_its_own_machines():
    step = {**STEP, "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1"}
    facts = read_cluster({**step, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, TYPED)
    assert (facts.master, facts.min_nodes, facts.max_nodes, facts.node_rank) == ("gpu03", 2, 2, 1)


def test_a_requeued_job_is_another_job():
    assert read_cluster({**STEP, "SLURM_RESTART_COUNT": "0"}, TYPED).job_id == "1234567.0"
    assert read_cluster({**STEP, "SLURM_RESTART_COUNT": "2"}, TYPED).job_id == "1234567.0.2"


def test_old_and_sparse_slurm_variables_are_enough():
    sparse = {"SLURM_JOBID": "42", "SLURM_STEPID": "1", "SLURM_NODELIST": "n[1,3]", "SLURM_NODEID": "0"}
    facts = read_cluster(sparse, TYPED)
    assert (facts.source, facts.master, facts.max_nodes, facts.port) == ("Slurm job 42", "n1", 2, 15042)
    assert facts.nproc_per_node is None


@pytest.mark.parametrize(
    "environ",
    [
        JOB,  # a login shell of salloc
        BATCH_SCRIPT,  # sbatch without srun: Slurm numbers the script's own process too
        {**STEP, "SLURM_STEP_ID": "4294967290"},  # the interactive step of salloc
        {name: value for name, value in STEP.items() if name != "SLURM_JOB_ID"},
    ],
)
def test_only_a_step_counts(environ):
    assert read_cluster(environ, TYPED) == ClusterFacts()


def test_outside_a_step_the_srun_line_is_at_hand():
    expected = "srun --nodes=4 --ntasks=4 --ntasks-per-node=1 yolo-launch run train.py -- --data 'my coco.yaml'"
    assert srun_line(BATCH_SCRIPT, TYPED) == expected
    assert srun_line({}, TYPED) == ""


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x4)"}, "SLURM_STEP_TASKS_PER_NODE=2(x4)"),
        ({"SLURM_STEP_TASKS_PER_NODE": "1,3,1(x2)"}, "SLURM_STEP_TASKS_PER_NODE=1,3,1(x2)"),
        ({"SLURM_STEP_TASKS_PER_NODE": "", "SLURM_NTASKS_PER_NODE": "8"}, "SLURM_NTASKS_PER_NODE=8"),
        ({"SLURM_STEP_TASKS_PER_NODE": "", "SLURM_LOCALID": "1"}, "SLURM_LOCALID=1"),
    ],
)
def test_several_launchers_on_a_machine_are_refused_with_the_srun_line(changes, seen):
    error = refusal({**STEP, **changes})
    assert error.what == "Slurm starts more than one launcher on a machine."
    assert error.seen == seen
    assert error.next_command == (
        "srun --nodes=4 --ntasks=4 --ntasks-per-node=1 yolo-launch run train.py -- --data 'my coco.yaml'"
    )


def test_the_srun_line_names_the_machines_of_the_step():
    step = {**STEP, "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}
    assert refusal(step).next_command.startswith("srun --nodes=3 ")


def test_the_step_is_judged_not_the_job_around_it():
    assert read_cluster({**STEP, "SLURM_NTASKS_PER_NODE": "8", "SLURM_TASKS_PER_NODE": "8(x4)"}, TYPED).node_rank == 2


@pytest.mark.parametrize(("text", "gpus"), [("4", 4), ("a100:4", 4), ("a100:2,v100:1", 3), ("0", None), ("", None)])
def test_gpus_that_slurm_gave(text, gpus):
    assert read_cluster({**STEP, "SLURM_GPUS_ON_NODE": text}, TYPED).nproc_per_node == gpus


def test_a_train_job():
    assert read_cluster(TRAIN_JOB, TYPED) == ClusterFacts(
        source="the training operator (PET_*)",
        node_rank=1,
        min_nodes=2,
        max_nodes=2,
        master="cells-node-0-0.cells",
        port=29400,
    )


@pytest.mark.parametrize(("text", "nproc"), [("4", 4), ("auto", None), ("gpu", None), ("cpu", None), ("", None)])
def test_workers_that_the_operator_asks_for(text, nproc):
    assert read_cluster({**TRAIN_JOB, "PET_NPROC_PER_NODE": text}, TYPED).nproc_per_node == nproc


def test_torchruns_own_variables():
    environ = {"PET_NNODES": "1:4", "PET_RDZV_ENDPOINT": "head:29500", "PET_RDZV_ID": "cells", "PET_NODE_RANK": "0"}
    facts = read_cluster({**environ, "PET_MASTER_ADDR": "elsewhere"}, TYPED)
    assert (facts.min_nodes, facts.max_nodes) == (1, 4)
    assert (facts.master, facts.port, facts.job_id) == ("head", 29500, "cells")


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("head", ("head", None)),
        ("10.0.0.1:1234", ("10.0.0.1", 1234)),
        ("[fd00::1]:1234", ("fd00::1", 1234)),
        ("[fd00::1]", ("fd00::1", None)),
        ("fd00::1", ("fd00::1", None)),
    ],
)
def test_endpoints(endpoint, expected):
    facts = read_cluster({"PET_RDZV_ENDPOINT": endpoint}, TYPED)
    assert (facts.master, facts.port) == expected


def test_a_pytorch_job_of_version_1_counts_machines_in_rank_and_world_size():
    facts = read_cluster(PYTORCH_JOB, TYPED)
    assert facts == ClusterFacts("MASTER_ADDR", 2, 3, 3, None, "cells-master-0", 23456)
    with_pet = read_cluster({**PYTORCH_JOB, "PET_NNODES": "3", "PET_NPROC_PER_NODE": "4", "WORLD_SIZE": "12"}, TYPED)
    assert (with_pet.source, with_pet.node_rank, with_pet.max_nodes) == ("the training operator (PET_*)", 2, 3)
    assert (with_pet.master, with_pet.port, with_pet.nproc_per_node) == ("cells-master-0", 23456, 4)


def test_an_elastic_pytorch_job_is_numbered_by_its_pods_names():
    environ = {"PET_NNODES": "1:4", "PET_RDZV_ENDPOINT": "cells-worker-0:23456", "HOSTNAME": "cells-worker-3"}
    assert read_cluster({**environ, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, TYPED).node_rank == 3
    assert read_cluster(environ, TYPED).node_rank is None  # machines outside Kubernetes may be called anything
    other = {**environ, "KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "other-3"}
    assert read_cluster(other, TYPED).node_rank is None


@pytest.mark.parametrize(
    ("environ", "rank", "nodes"),
    [
        ({"NODE_RANK": "1", "NNODES": "2"}, 1, 2),
        ({"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2"}, 1, 2),
        ({"NODE_RANK": "1", "RANK": "8", "WORLD_SIZE": "16"}, 1, None),  # these two count processes
        ({"JOB_COMPLETION_INDEX": "3", "NNODES": "4"}, 3, 4),
        ({"NODE_RANK": "0", "JOB_COMPLETION_INDEX": "3"}, 0, None),
        ({}, None, None),
    ],
)
def test_master_addr_and_its_companions(environ, rank, nodes):
    facts = read_cluster({"MASTER_ADDR": "10.0.0.1", **environ}, TYPED)
    assert (facts.source, facts.master, facts.port) == ("MASTER_ADDR", "10.0.0.1", None)
    assert (facts.node_rank, facts.min_nodes, facts.max_nodes) == (rank, nodes, nodes)


def test_an_indexed_job_gives_the_rank_alone():
    assert read_cluster({"JOB_COMPLETION_INDEX": "1"}, TYPED) == ClusterFacts(
        "the Indexed Job (JOB_COMPLETION_INDEX)", 1
    )


@pytest.mark.parametrize("mark", [{"LOCAL_RANK": "0"}, {"TORCHELASTIC_RUN_ID": "none"}])
@pytest.mark.parametrize("around", [PYTORCH_JOB, TRAIN_JOB, {"JOB_COMPLETION_INDEX": "1"}])
def test_a_worker_of_another_launcher_is_no_machine(mark, around):
    assert read_cluster({**around, **mark}, TYPED) == ClusterFacts()


def test_a_local_rank_that_a_job_script_exports_does_not_hide_a_slurm_step():
    assert read_cluster({**STEP, "LOCAL_RANK": "0"}, TYPED).node_rank == 2
    assert read_cluster({**STEP, "TORCHELASTIC_RUN_ID": "1"}, TYPED) == ClusterFacts()


def test_slurm_before_pet_before_master_addr():
    assert read_cluster({**STEP, **TRAIN_JOB, **PYTORCH_JOB}, TYPED).source == "Slurm job 1234567"
    assert read_cluster({**JOB, **TRAIN_JOB, **PYTORCH_JOB}, TYPED).source == "the training operator (PET_*)"
    assert read_cluster({**JOB, **PYTORCH_JOB}, TYPED).source == "MASTER_ADDR"


@pytest.mark.parametrize(
    ("environ", "name", "expected"),
    [
        ({**STEP, "SLURM_NODEID": "two"}, "SLURM_NODEID", "a node rank"),
        ({**STEP, "SLURM_STEP_NUM_NODES": "0"}, "SLURM_STEP_NUM_NODES", "above 0"),
        ({**STEP, "SLURM_STEP_NODELIST": "gpu[01-"}, "SLURM_STEP_NODELIST", "gpu[01-03,7],login"),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "many"}, "SLURM_STEP_TASKS_PER_NODE", "1(x4)"),
        ({**STEP, "SLURM_GPUS_ON_NODE": "all"}, "SLURM_GPUS_ON_NODE", "a100:4"),
        ({**STEP, "SLURM_JOB_ID": "x"}, "SLURM_JOB_ID", "number of a job"),
        ({**TRAIN_JOB, "PET_NNODES": "4:1"}, "PET_NNODES", "1:4"),
        ({**TRAIN_JOB, "PET_NNODES": "0"}, "PET_NNODES", "1:4"),
        ({**TRAIN_JOB, "PET_NODE_RANK": "-1"}, "PET_NODE_RANK", "a node rank"),
        ({**TRAIN_JOB, "PET_NPROC_PER_NODE": "all"}, "PET_NPROC_PER_NODE", "auto"),
        ({**TRAIN_JOB, "PET_MASTER_PORT": "65536"}, "PET_MASTER_PORT", "65535"),
        ({"PET_RDZV_ENDPOINT": "head:http"}, "PET_RDZV_ENDPOINT", "host:port"),
        ({"PET_RDZV_ENDPOINT": "head:1:2:x"}, "PET_RDZV_ENDPOINT", "host:port"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "0"}, "MASTER_PORT", "65535"),
        ({"MASTER_ADDR": "a", "NNODES": "two"}, "NNODES", "1:4"),
        ({"MASTER_ADDR": "a", "RANK": "0", "WORLD_SIZE": "x"}, "WORLD_SIZE", "above 0"),
        ({"JOB_COMPLETION_INDEX": "9" * 5000}, "JOB_COMPLETION_INDEX", "a node rank"),
    ],
)
def test_what_cannot_be_read_is_named(environ, name, expected):
    error = refusal(environ)
    assert error.what == f"{name} cannot be used."
    assert error.seen.startswith(f"{name}={environ[name][:20]}")
    assert expected in error.expected


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("login", ["login"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("gpu[8-11]", ["gpu8", "gpu9", "gpu10", "gpu11"]),
        ("gpu[098-101]", ["gpu098", "gpu099", "gpu100", "gpu101"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("r[1-2]n[1-2]-ib.site", ["r1n1-ib.site", "r1n2-ib.site", "r2n1-ib.site", "r2n2-ib.site"]),
        ("[1-2]a", ["1a", "2a"]),
        ("10.0.0.[1-2],10.0.1.7", ["10.0.0.1", "10.0.0.2", "10.0.1.7"]),
        ("b,a,c_1", ["b", "a", "c_1"]),
    ],
)
def test_node_lists(text, hosts):
    assert expand_nodelist(text) == hosts


@pytest.mark.parametrize(
    "text",
    ["a[1", "a1]", "a[]", "a[1-]", "a[-1]", "a[2-1]", "a[x-y]", "a[[1]]", "a,,b", "a,", "a b", "(null)", "a[1-2-3]"],
)
def test_damaged_node_lists_are_refused(text):
    with pytest.raises(LaunchError, match="cannot be used"):
        expand_nodelist(text)


@pytest.mark.parametrize("text", ["a[0-999999999]", "a[0-999]b[0-999]", "a[1-99999],b[1-99999]"])
def test_endless_node_lists_are_refused_before_they_fill_the_memory(text):
    with pytest.raises(LaunchError, match="100000"):
        expand_nodelist(text)


hosts_strategy = st.lists(
    st.tuples(
        st.sampled_from(["n", "gpu-", "r1n", "10.0.0."]),
        st.integers(0, 120),
        st.integers(1, 4),
        st.sampled_from(["", "-ib", ".site"]),
    ),
    max_size=40,
)


def compress(hosts):
    """Returns Slurm's short form, with one bracket for each run of names that differ in their number alone."""
    elements = []
    for (prefix, suffix), group in itertools.groupby(hosts, key=lambda host: (host[0], host[2])):
        runs = []
        for _, number, _ in group:
            if runs and str(int(runs[-1][-1]) + 1).zfill(len(runs[-1][0])) == number:
                runs[-1].append(number)
            else:
                runs.append([number])
        ranges = ",".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
        elements.append(f"{prefix}[{ranges}]{suffix}")
    return ",".join(elements)


@settings(max_examples=200, deadline=None)
@given(hosts_strategy)
def test_a_compressed_list_expands_to_the_same_hosts(drawn):
    hosts = [(prefix, str(number).zfill(width), suffix) for prefix, number, width, suffix in drawn]
    assert expand_nodelist(compress(hosts)) == ["".join(host) for host in hosts]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=2, max_size=3))
def test_several_brackets_give_every_combination_in_order(axes):
    text = "".join(f"x[{','.join(f'{n:02d}' for n in axis)}]" for axis in axes)
    expected = ["".join(f"x{n:02d}" for n in chosen) for chosen in itertools.product(*axes)]
    assert expand_nodelist(text) == expected
