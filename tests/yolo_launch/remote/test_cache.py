"""The cache of copies: read once, held while in use, and bounded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from yolo_launch.errors import ExitCode, LaunchError
from yolo_launch.remote.address import RemoteFile
from yolo_launch.remote.cache import RemoteCache, key_of
from yolo_launch.remote.transfer import RemoteStore


@pytest.fixture
def there(tmp_path):
    """A folder that stands for a store: two data sets of 1,000 bytes and one of 3,000."""
    for name, size in (("a", 900), ("b", 900), ("large", 2900)):
        folder = tmp_path / "there" / name
        (folder / "images").mkdir(parents=True)
        (folder / "data.yaml").write_bytes(b"x" * 100)
        (folder / "images" / "1.jpg").write_bytes(os.urandom(size))
    return tmp_path / "there"


def fetch(cache, there, name, said=None):
    say = (said if said is not None else []).append
    return cache.fetch(f"file://{there}/{name}/data.yaml", "--data", say, with_folder=True)


def copies(cache) -> int:
    return len([path for path in cache.folder.iterdir() if path.is_dir()])


def test_a_folder_is_read_once_and_again_when_it_has_changed(tmp_path, there):
    cache, said = RemoteCache(tmp_path / "cache"), []
    first, second = fetch(cache, there, "a", said), fetch(cache, there, "a", said)
    assert first.path == second.path
    assert len(said) == 1
    assert (first.path.parent / "images" / "1.jpg").read_bytes() == (there / "a" / "images" / "1.jpg").read_bytes()
    (there / "a" / "images" / "2.jpg").write_bytes(b"new")
    third = fetch(cache, there, "a", said)
    assert third.path != first.path
    assert (third.path.parent / "images" / "2.jpg").read_bytes() == b"new"
    assert not (first.path.parent / "images" / "2.jpg").exists(), "a running job sees what it began with"


def test_launchers_that_start_together_read_once(tmp_path, there):
    program = (
        "import sys; from pathlib import Path; from yolo_launch.remote.cache import RemoteCache\n"
        "RemoteCache(Path(sys.argv[1])).fetch(sys.argv[2], '--data', print, with_folder=True)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache"), f"file://{there}/a/data.yaml"]
    launchers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [launcher.communicate(timeout=120)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0, 0]
    assert sum("reading 2 files" in one for one in said) == 1


def test_the_least_recently_used_copy_makes_room(tmp_path, there):
    cache = RemoteCache(tmp_path / "cache", limit_bytes=4500)
    a, b = fetch(cache, there, "a"), fetch(cache, there, "b")
    kept = [a.path, b.path]
    for number, copy in enumerate((a, b)):
        os.utime(cache.folder / f"{copy.path.parent.name}.use", (number, number))
    del a, b, copy  # the jobs are over
    large = fetch(cache, there, "large")
    assert [path.exists() for path in kept] == [False, True]
    assert large.path.exists()


def test_a_copy_in_use_stays_and_the_error_says_so(tmp_path, there):
    cache = RemoteCache(tmp_path / "cache", limit_bytes=3500)
    used = fetch(cache, there, "a")
    with pytest.raises(LaunchError, match="does not fit into the cache") as caught:
        fetch(cache, there, "large")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "YOLO_LAUNCH_REMOTE_CACHE_GB" in caught.value.next_command
    assert used.path.exists()
    del used
    fetch(cache, there, "large")
    assert copies(cache) == 1


def test_what_a_killed_launcher_left_is_gone_on_with(tmp_path, there):
    cache = RemoteCache(tmp_path / "cache")
    files, url = RemoteStore(f"file://{there}/a").list(), f"file://{there}/a/data.yaml"
    partial = cache.folder / f"{key_of(url, files)}.partial"
    (partial / "images").mkdir(parents=True)
    (partial / "data.yaml").write_bytes(b"y" * 100)  # has its name, so it was whole
    (partial / "images" / ".1.jpg.1-2.tmp").write_bytes(b"half")
    copy = fetch(cache, there, "a")
    assert sorted(path.name for path in copy.path.parent.rglob("*") if path.is_file()) == ["1.jpg", "data.yaml"]
    assert copy.path.read_bytes() == b"y" * 100
    assert not partial.exists()


def test_a_file_that_is_not_there_is_an_error_with_the_option(tmp_path, there):
    with pytest.raises(LaunchError, match=r"--weights file://.* cannot be read") as caught:
        RemoteCache(tmp_path / "cache").fetch(f"file://{there}/a/absent.pt", "--weights", print)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, there):
    (tmp_path / "cache").write_text("a file is in the way", encoding="utf-8")
    with pytest.raises(LaunchError, match="cannot be kept on this machine"):
        fetch(RemoteCache(tmp_path / "cache"), there, "a")


def test_a_name_that_leaves_the_folder_is_refused(tmp_path, there, monkeypatch):
    listed = [RemoteFile("../../evil", 1), RemoteFile("data.yaml", 100)]
    monkeypatch.setattr(RemoteStore, "list", lambda self, name="": listed)
    with pytest.raises(LaunchError) as caught:
        fetch(RemoteCache(tmp_path / "cache"), there, "a")
    assert "no name of a file below" in caught.value.seen
