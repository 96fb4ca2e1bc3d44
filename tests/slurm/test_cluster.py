"""The Slurm of these tests itself: a second one beside the first, and nothing left of it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import Cluster, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]


def host() -> dict[str, object]:
    """What a cluster could leave behind on the host."""
    return {
        "links": sorted(psutil.net_if_addrs()),
        "mounts": Path("/proc/self/mounts").read_text(),
        "named namespaces": sorted(os.listdir("/run/netns")) if Path("/run/netns").is_dir() else [],
        "control groups": sorted(path.parent.name for path in Path("/sys/fs/cgroup").glob("*/*slurm*/")),
    }


def test_a_cluster_leaves_nothing(shared_cluster):
    before = host()
    cluster = Cluster()
    running = [process for machine in cluster.machines.values() for process in machine.processes()]
    cluster.start("srun", "-N2", "sleep", "300", cwd=cluster.folder, output=cluster.folder / "sleep.out")
    wait_until(lambda: sum(p.name() == "sleep" for _, p in cluster.at_work()) == 2, 30, lambda: str(cluster.queue()))
    running += [process for _, process in cluster.at_work()]
    assert {"munged", "slurmctld", "slurmd", "sleep"} <= {process.name() for process in running}
    assert not shared_cluster.queue(), "two clusters do not see one another"
    cluster.close()
    assert not [process for process in running if process.is_running()]
    assert not cluster.folder.exists()
    assert host() == before
