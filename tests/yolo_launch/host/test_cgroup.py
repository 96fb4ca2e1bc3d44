"""Control groups of both versions, as files in a folder."""

from __future__ import annotations

import pytest

from yolo_launch.host.cgroup import OomKillCounter, cpu_quota, memory_left, memory_limit, usable_cores


def make(root, files):
    for path, text in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return root


def test_version_2_takes_the_tightest_of_the_group_and_its_parents(tmp_path):
    root = make(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory",
            "sys/fs/cgroup/pod/cpu.max": "250000 100000",
            "sys/fs/cgroup/pod/memory.max": "1000",
            "sys/fs/cgroup/pod/memory.current": "900",
            "sys/fs/cgroup/pod/memory.stat": "anon 1\ninactive_file 300\n",
            "sys/fs/cgroup/cpu.max": "400000 100000",
            "sys/fs/cgroup/pod/box/cpu.max": "max 100000",
            "sys/fs/cgroup/pod/box/memory.max": "2000",
            "sys/fs/cgroup/pod/box/memory.current": "100",
        },
    )
    assert cpu_quota(root) == 2.5
    assert memory_limit(root) == 1000
    assert memory_left(root) == 400


def test_version_1_and_its_number_for_no_limit(tmp_path):
    root = make(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n2:cpu,cpuacct:/box\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "5000",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "2000",
            "sys/fs/cgroup/memory/box/memory.stat": "total_inactive_file 500",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert cpu_quota(root) == 1.5
    assert memory_limit(root) == 5000
    assert memory_left(root) == 3500


def test_version_1_without_limits(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/\n2:cpu:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "2000",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    root = make(tmp_path, files)
    assert (cpu_quota(root), memory_limit(root), memory_left(root)) == (None, None, None)


def test_a_path_of_the_outer_machine_falls_back_to_what_is_mounted(tmp_path):
    files = {"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/cpu.max": "100000 100000"}
    assert cpu_quota(make(tmp_path, files)) == 1.0


def test_no_groups_no_limits(tmp_path):
    assert (cpu_quota(tmp_path), memory_limit(tmp_path), memory_left(tmp_path)) == (None, None, None)


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"), [(8, None, 8), (8, 2.5, 2), (8, 0.5, 1), (2, 16.0, 2), (4, 3.9999999, 4)]
)
def test_usable_cores(affinity, quota, cores):
    assert usable_cores(affinity, quota) == cores


@pytest.mark.parametrize(
    ("lines", "own", "nested"),
    [
        ("0::/pod{}", "sys/fs/cgroup/pod/memory.events", "sys/fs/cgroup/pod/job/memory.events"),
        (
            "4:memory:/pod{}",
            "sys/fs/cgroup/memory/pod/memory.oom_control",
            "sys/fs/cgroup/memory/pod/job/memory.oom_control",
        ),
    ],
    ids=["version-2", "version-1"],
)
def test_kills_for_memory_are_counted_in_the_group_of_each_worker(tmp_path, lines, own, nested):
    """As recorded: the victim's own group counts its end, and in version 1 no other does."""
    root = make(tmp_path, {"proc/self/cgroup": lines.format(""), "proc/7/cgroup": lines.format("")})
    make(root, {own: "oom 1\noom_kill 2\n", nested: "oom 0\noom_kill 0\n", "proc/vmstat": "oom_kill 9\n"})
    counter = OomKillCounter(root)
    counter.look_at(7)
    assert counter.count() == 0
    make(root, {"proc/7/cgroup": lines.format("/job")})  # it moved
    counter.look_at(7)
    make(root, {nested: "oom 1\noom_kill 1\n", "proc/vmstat": "oom_kill 11\n"})
    assert counter.count() == 1


def test_without_groups_the_host_counts_kills_for_memory(tmp_path):
    root = make(tmp_path, {"proc/vmstat": "nr_free_pages 5\noom_kill 7\n"})
    counter = OomKillCounter(root)
    assert counter.count() == 0
    make(root, {"proc/vmstat": "nr_free_pages 5\noom_kill 8\n"})
    assert counter.count() == 1
