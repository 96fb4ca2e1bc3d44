"""Plans for machines that are not here."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.planning.batch_split import largest_fitting_count, nearest_totals
from yolo_launch.planning.plan import make_plan, plan_facts, rank_lines, settle_batch, torchrun_command
from yolo_launch.spec import LaunchRequest, TorchFacts, WorkerCommand

GB = 1 << 30
COMMAND = WorkerCommand(("-m", "trainer", "runs/train/exp/config.yaml"))


def levels(plan):
    return {finding.level for finding in plan.findings}


def texts(plan):
    return "\n".join(finding.seen for finding in plan.findings)


@pytest.mark.parametrize("count", range(1, 9))
def test_equal_gpus_share_batch_and_cores(make_host, count):
    plan = make_plan(LaunchRequest(global_batch_size=16 * count), make_host(count))
    assert plan.mode == ("single" if count == 1 else "ddp")
    assert (plan.world_size, plan.nproc_per_node, plan.local_batch_size) == (count, count, 16)
    assert plan.global_batch_size == 16 * count
    assert plan.backend == "nccl"
    assert plan.threads_per_rank == 1, "beside a GPU the cores are for the loader processes"
    assert plan.workers_per_rank == min(16, 32 // count - 1)
    assert [device.index for device in plan.devices] == list(range(count))
    assert levels(plan) <= {"ok"}


def test_no_gpu_means_one_worker_on_the_cpu(make_host):
    plan = make_plan(LaunchRequest(), make_host(cpu_cores=2))
    assert (plan.mode, plan.backend, plan.world_size) == ("single", "gloo", 1)
    assert plan.environment == {
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "",
        "GOMP_SPINCOUNT": "0",
        "YOLO_DEVICE": "cpu",
    }
    assert plan.workers_per_rank == 0


def test_workers_on_the_cpu_share_its_cores(make_host):
    plan = make_plan(LaunchRequest(gpus="cpu", nproc=2), make_host(4, cpu_cores=8))
    assert (plan.mode, plan.backend, plan.world_size, plan.threads_per_rank) == ("ddp", "gloo", 2, 4)
    assert [device.kind for device in plan.devices] == ["cpu", "cpu"]
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == ""


def test_more_workers_than_cores_are_warned_of(make_host):
    plan = make_plan(LaunchRequest(gpus="cpu", nproc=3, global_batch_size=96), make_host(cpu_cores=2))
    assert (plan.world_size, plan.threads_per_rank) == (3, 1)
    (finding,) = [finding for finding in plan.findings if finding.check == "workers"]
    assert (finding.seen, finding.advice) == ("3 workers share 2 cores, and wait for one another", "--nproc 2")


def test_children_see_the_chosen_gpus_by_uuid_in_pci_order(make_host):
    plan = make_plan(LaunchRequest(gpus="2,0", global_batch_size=16), make_host(3))
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == "GPU-2b12cd34-0000,GPU-0b12cd34-0000"
    assert plan.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert rank_lines(plan)[0] == "rank 0 -> GPU 2 (RTX 3090, GPU-2b12…, 23.5 GB free)"


def test_devices_without_uuid_are_named_by_index(make_host, make_gpu):
    host = make_host((make_gpu(0, uuid=""), make_gpu(1, uuid="")))
    assert make_plan(LaunchRequest(), host).environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_thread_settings_of_the_user_stay(make_host):
    host = make_host(cpu_cores=4, environment={"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "active"})
    plan = make_plan(LaunchRequest(), host)
    assert "OMP_NUM_THREADS" not in plan.environment
    assert plan.threads_per_rank == 1
    assert "GOMP_SPINCOUNT" not in plan.environment


def test_ranks_of_another_launcher_are_removed(make_host):
    inherited = {
        "RANK": "3",
        "MASTER_ADDR": "10.0.0.1",
        "PET_NNODES": "2",
        "TORCHELASTIC_RUN_ID": "x",
        "NCCL_DEBUG": "",
    }
    plan = make_plan(LaunchRequest(), make_host(1, environment=inherited))
    assert set(plan.removed_environment) == {"RANK", "MASTER_ADDR", "PET_NNODES", "TORCHELASTIC_RUN_ID"}


def test_uneven_batch_is_refused_with_totals_and_devices_that_fit(make_host):
    typed = ("yolo-launch", "train", "--data", "my birds.yaml", "--device=0,1,2", "--batch", "64")
    with pytest.raises(LaunchError) as caught:
        make_plan(LaunchRequest(gpus="0,1,2", global_batch_size=64, typed=typed), make_host(4))
    assert caught.value.what == (
        "--batch 64 cannot be split evenly over 3 GPUs (0, 1, 2). Use --batch 63 or 66, or two GPUs."
    )
    assert caught.value.next_command == "yolo-launch train --data 'my birds.yaml' --gpus 0,1 --batch 64"
    assert caught.value.exit_code == ExitCode.USAGE


def test_devices_in_the_proposal_count_inside_the_mask(make_host):
    request = LaunchRequest(gpus="0,1,2", global_batch_size=64)
    with pytest.raises(LaunchError, match=r"over 3 GPUs \(0, 1, 2\)") as caught:
        make_plan(request, make_host(8, visible_devices="4,5,6,7"))
    assert caught.value.next_command == "yolo-launch train --gpus 0,1 --batch 64"


@settings(max_examples=200, deadline=None)
@given(batch=st.integers(1, 2000), count=st.integers(1, 16))
def test_proposals_always_fit(batch, count):
    totals = nearest_totals(batch, count)
    assert totals
    assert all(total > 0 and total % count == 0 and abs(total - batch) <= count for total in totals)
    fitting = largest_fitting_count(batch, count)
    assert batch % fitting == 0
    assert 1 <= fitting < max(2, count)


@settings(max_examples=150, deadline=None)
@given(batch=st.integers(1, 300), count=st.integers(1, 8), uneven=st.booleans())
def test_a_batch_is_split_fully_or_refused(make_host, batch, count, uneven):
    request = LaunchRequest(global_batch_size=batch, uneven_batch_ok=uneven)
    if batch % count and not uneven:
        with pytest.raises(LaunchError) as caught:
            make_plan(request, make_host(count))
        assert caught.value.next_command
        return
    plan = make_plan(request, make_host(count))
    assert plan.global_batch_size == batch
    assert 0 <= plan.local_batch_size * count - batch < count


def test_a_default_batch_grows_to_the_next_total(make_host):
    plan = make_plan(LaunchRequest(global_batch_size=16, batch_is_default=True), make_host(3))
    assert (plan.global_batch_size, plan.local_batch_size) == (18, 6)
    assert "default batch 16 does not divide" in texts(plan)


def test_a_batch_is_settled_over_the_workers_of_all_nodes(make_host):
    host = make_host(2)
    request = LaunchRequest(global_batch_size=48, nnodes=2, nproc_by_node=(2, 4))
    assert settle_batch(request, host, host.devices)[0] == 48
    with pytest.raises(LaunchError) as refusal:
        settle_batch(replace(request, global_batch_size=32), host, host.devices)
    assert refusal.value.what == (
        "--batch 32 cannot be split evenly over the 6 workers of all machines (2 + 4). Use --batch 30 or 36."
    )
    assert settle_batch(replace(request, global_batch_size=32, uneven_batch_ok=True), host, host.devices)[0] == 32


def test_auto_batch_is_16_on_a_cpu_and_measured_on_a_gpu(make_host):
    on_cpu = make_plan(LaunchRequest(global_batch_size=None), make_host())
    assert on_cpu.global_batch_size == 16
    assert not on_cpu.batch_is_auto
    assert "takes 16 on a CPU" in texts(on_cpu)
    on_gpu = make_plan(LaunchRequest(global_batch_size=None), make_host(2))
    assert on_gpu.batch_is_auto
    assert "measured on the smallest" in texts(on_gpu)


def test_mixed_cards_name_the_one_that_sets_the_pace(make_host, make_gpu):
    old = make_gpu(1, "GTX 1080", total_gb=8, free_gb=8, compute_capability=(6, 1))
    plan = make_plan(LaunchRequest(global_batch_size=64), make_host((make_gpu(0), old)))
    assert "GPU 1 (GTX 1080" in texts(plan)
    assert "sets the pace" in texts(plan)


def test_a_busy_gpu_is_named_with_who_holds_it(make_host, make_gpu, busy_process):
    busy = make_gpu(0, free_gb=14, processes=(busy_process,))
    plan = make_plan(LaunchRequest(), make_host((busy,)))
    assert "PID 4711 of ada (9.0 GB, python train.py --data birds.yaml)" in texts(plan)


def test_a_throttled_gpu_is_named(make_host, make_gpu):
    assert "too hot" in texts(make_plan(LaunchRequest(), make_host((make_gpu(0, throttled="too hot"),))))


def test_small_shares_get_the_advice_of_sync_bn(make_host):
    request = LaunchRequest(global_batch_size=16)
    plan = make_plan(request, make_host(2))
    assert any("--sync-bn" in finding.advice for finding in plan.findings)
    assert not make_plan(replace(request, sync_bn=True), make_host(2)).findings
    assert not make_plan(replace(request, global_batch_size=64), make_host(2)).findings


def test_small_shares_of_cpu_workers_get_it_too(make_host):
    request = LaunchRequest(gpus="cpu", nproc=2, global_batch_size=16)
    assert "each worker gets 8 images, few for batch norm" in texts(make_plan(request, make_host()))
    assert not make_plan(replace(request, sync_bn=True), make_host()).findings


def test_sync_bn_with_one_worker_says_that_it_does_nothing(make_host):
    plan = make_plan(LaunchRequest(gpus="cpu", sync_bn=True), make_host())
    assert "--sync-bn does nothing with one worker" in texts(plan)


def test_data_parallel_is_one_worker_with_all_gpus_and_advised_against(make_host):
    plan = make_plan(LaunchRequest(parallel="dp", global_batch_size=64), make_host(4))
    assert (plan.mode, plan.world_size, plan.nproc_per_node, plan.local_batch_size) == ("dp", 1, 1, 64)
    assert len(plan.devices) == 4
    assert "DataParallel is slow" in texts(plan)
    with pytest.raises(LaunchError, match="--batch auto cannot choose for --parallel dp"):
        make_plan(LaunchRequest(parallel="dp", global_batch_size=None), make_host(4))
    with pytest.raises(LaunchError, match="cannot be split evenly over 3 GPUs"):
        make_plan(LaunchRequest(parallel="dp", global_batch_size=64), make_host(3))


def test_small_shared_memory_costs_no_loaders(make_host):
    plan = make_plan(LaunchRequest(global_batch_size=64), make_host(4, shm_total_bytes=64 << 20, shm_free_bytes=0))
    assert plan.workers_per_rank == 7
    few = make_plan(LaunchRequest(global_batch_size=8), make_host(4))
    assert few.workers_per_rank == 2


def test_workers_asked_for_are_capped_by_the_cores(make_host):
    plan = make_plan(LaunchRequest(workers=16, global_batch_size=64), make_host(4))
    assert plan.workers_per_rank == 8
    assert "--workers 16 per rank is more than its 8 cores" in texts(plan)


def test_several_machines_share_the_batch(make_host):
    plan = make_plan(LaunchRequest(nnodes=2, node_rank=1, global_batch_size=64), make_host(4))
    assert (plan.world_size, plan.local_batch_size) == (8, 8)
    assert rank_lines(plan)[0].startswith("rank 4 -> GPU 0")
    assert "--nnodes=2 --node_rank=1" in torchrun_command(plan, COMMAND)


@pytest.mark.parametrize(
    ("request_", "gpus", "message"),
    [
        (LaunchRequest(global_batch_size=16), 2, "cannot train on 2 chosen devices.*ignored"),
        (LaunchRequest(global_batch_size=16, builtin_trainer=False), 2, "cannot train on 2 chosen devices"),
        (LaunchRequest(global_batch_size=16), 1, "too old for the built-in trainer"),
    ],
)
def test_torch_1_12_0_is_refused_where_it_breaks(make_host, request_, gpus, message):
    facts = TorchFacts("1.12.0+cu113", "0.13.0+cu113", "11.3", torchvision_needs="==1.12.0", torchvision_build="cu113")
    with pytest.raises(LaunchError, match=message) as caught:
        make_plan(request_, make_host(gpus, torch=facts))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_torch_1_12_0_runs_a_script_on_one_device(make_host):
    facts = TorchFacts("1.12.0+cu113", "0.13.0+cu113", "11.3", torchvision_needs="==1.12.0", torchvision_build="cu113")
    plan = make_plan(LaunchRequest(builtin_trainer=False), make_host(1, torch=facts))
    assert "works with one device only" in texts(plan)


def test_the_torchrun_command_says_it_all(make_host):
    plan = make_plan(LaunchRequest(gpus="1", max_restarts=2), make_host(2, environment={"RANK": "0"}))
    assert torchrun_command(plan, WorkerCommand(("my train.py", "--x"))) == (
        "env -u RANK OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 YOLO_DEVICE=cuda GOMP_SPINCOUNT=0 "
        "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=GPU-1b12cd34-0000 "
        "torchrun --standalone --nproc_per_node=1 --max_restarts=2 'my train.py' --x"
    )
    assert "--rdzv_endpoint=127.0.0.1:4000" in torchrun_command(replace(plan, port=4000), COMMAND)


def test_facts_are_json_with_the_promised_keys(make_host):
    facts = json.loads(json.dumps(plan_facts(make_plan(LaunchRequest(), make_host(2)), COMMAND)))
    promised = (
        "mode nnodes node_rank nproc_per_node world_size global_batch_size local_batch_size devices backend "
        "torchrun findings"
    )
    assert set(promised.split()) <= set(facts)


def test_the_same_request_gives_the_same_plan(make_host):
    request = LaunchRequest(gpus="idle", global_batch_size=32)
    assert make_plan(request, make_host(4)) == make_plan(request, make_host(4))
