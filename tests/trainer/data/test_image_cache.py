from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from trainer.data import image_cache
from trainer.data.dataset import load_dataset_file
from trainer.data.image_cache import open_image_cache
from trainer.data.images import ImageFiles
from trainer.data.scan.scan import scan_split

PROJECT_DIR = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def memory_folder(tmp_path, monkeypatch):
    """A folder in place of /dev/shm, so that nothing is left there by a failing test."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(image_cache, "_memory_folder", lambda: folder)
    return folder


@pytest.fixture
def images(make_dataset, scan):
    yaml_path = make_dataset(["0 .5 .5 .2 .2\n"] * 20, suffix=".png")
    broken = yaml_path.parent / "images" / "train" / "0003.png"
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 0xFF
    broken.write_bytes(content)
    return scan(yaml_path)[0]


def open_it(images, tmp_path, kind="ram", **options):
    return open_image_cache(images, image_size=48, training=True, kind=kind, cache_dir=tmp_path, **options)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_cache_gives_the_same_pixels_as_the_files(images, tmp_path, kind):
    heard = []
    cache = open_it(images, tmp_path, kind, on_progress=lambda *progress: heard.append(progress))
    files = ImageFiles(images.paths, images.shapes_hw, 48, training=True)
    for source in (cache, pickle.loads(pickle.dumps(cache))):
        for index in range(len(images)):
            cached, fresh = source.load(index), files.load(index)
            np.testing.assert_array_equal(cached.pixels, fresh.pixels)
            assert cached[1:] == fresh[1:]
            assert not cached.pixels.flags.writeable
    assert not cache.load(3).readable
    assert heard[-1] == (20, 20)


def test_memory_is_freed_by_its_last_user_and_disk_is_kept(images, tmp_path, memory_folder):
    first, second = open_it(images, tmp_path), open_it(images, tmp_path)
    inode = first.path.stat().st_ino
    assert second.path.stat().st_ino == inode
    del first
    assert second.path.exists()
    second.load(5)
    del second
    assert list(memory_folder.iterdir()) == []
    disk = open_it(images, tmp_path, "disk").path
    before = disk.stat().st_mtime_ns
    assert open_it(images, tmp_path, "disk").path.stat().st_mtime_ns == before


def test_what_a_killed_run_left_is_removed_or_used(images, tmp_path, memory_folder):
    stale = memory_folder / f"yolo-launch-{os.getuid()}-00.raw"
    foreign = memory_folder / "something.raw"
    for path in (stale, stale.with_name(stale.name + ".lock"), foreign):
        path.write_bytes(b"x")
    cache = open_it(images, tmp_path)
    assert sorted(path.name for path in memory_folder.iterdir()) == sorted(
        [foreign.name, cache.path.name, cache.path.name + ".lock"]
    )
    part = cache.path.with_name(cache.path.name + ".part")
    part.write_bytes(b"half")
    cache.path.unlink()
    del cache
    assert open_it(images, tmp_path).load(0).readable
    assert not part.exists()


def test_many_at_once_fill_it_once(images, tmp_path, monkeypatch):
    made, caches = [], []
    real = image_cache._make

    def make(*arguments):
        made.append(1)
        time.sleep(0.2)
        return real(*arguments)

    monkeypatch.setattr(image_cache, "_make", make)
    threads = [threading.Thread(target=lambda: caches.append(open_it(images, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(caches) == 4
    assert None not in caches
    assert made == [1]


def test_no_room_is_a_warning(images, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(image_cache, "free_memory", lambda: 1000)
    assert open_it(images, tmp_path) is None
    assert "--cache disk may have more" in caplog.text
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage(1, 1, 1))
    assert open_it(images, tmp_path, "disk") is None
    assert caplog.text.count("decoded anew") == 2


def test_folder_that_cannot_be_written_is_a_warning(images, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert open_it(images, tmp_path / "file", "disk") is None
    assert "decoded anew" in caplog.text


def test_memory_limit_of_a_container_counts():
    assert 0 < image_cache.free_memory() <= image_cache.psutil.virtual_memory().total


SCRIPT = """
import hashlib, sys, time
from pathlib import Path
from trainer.data import image_cache
from trainer.data.dataset import load_dataset_file
from trainer.data.scan.scan import scan_split
image_cache._memory_folder = lambda: Path(sys.argv[2])
dataset = load_dataset_file(sys.argv[1])
images, _ = scan_split(dataset, "train", num_classes=3, cache_dir=Path(sys.argv[3]), writer=False)
cache = image_cache.open_image_cache(images, image_size=64, training=True, kind="ram", cache_dir=Path(sys.argv[3]))
pixels = b"".join(cache.load(index).pixels.tobytes() for index in range(len(images)))
print(hashlib.sha256(pixels).hexdigest(), cache.path.stat().st_ino, flush=True)
time.sleep(float(sys.argv[4]))
"""


def test_processes_share_one_copy_and_survive_kills(small_bccd, memory_folder, tmp_path):
    def start(seconds: float) -> subprocess.Popen:
        arguments = [sys.executable, "-c", SCRIPT, str(small_bccd), str(memory_folder), str(tmp_path), str(seconds)]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=PROJECT_DIR)

    ranks = [start(60), start(60)]
    lines = {rank.stdout.readline() for rank in ranks}
    assert len(lines) == 1
    dataset = load_dataset_file(small_bccd)
    images, _ = scan_split(dataset, "train", num_classes=3, cache_dir=tmp_path)
    files = ImageFiles(images.paths, images.shapes_hw, 64, training=True)
    pixels = b"".join(files.load(index).pixels.tobytes() for index in range(len(images)))
    assert lines.pop().split()[0] == hashlib.sha256(pixels).hexdigest()
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
        rank.communicate(timeout=10)
    assert len(list(memory_folder.iterdir())) == 2
    assert start(0).wait(timeout=20) == 0
    assert list(memory_folder.iterdir()) == []
