"""Transfers, from real processes: file:// everywhere, s3:// against a server that is stopped, killed or refuses."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from yolo_launch.errors import LaunchError
from yolo_launch.remote.address import RemoteFile, is_url, split_url
from yolo_launch.remote.transfer import RemoteStore, StoreError, timeout_from

REPORT_S = 10.0
"""What is promised; a child's start comes on top, which a machine at work may slow."""


def files_below(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://b/x.yaml", True), ("gs://b/x", True), ("file:///a", True), ("a/b.yaml", False), ("C:\\x", False)],
)
def test_a_url_has_a_scheme(text, expected):
    assert is_url(text) is expected


def test_a_url_is_a_folder_and_a_name():
    assert split_url("s3://bucket/set/data.yaml") == ("s3://bucket/set", "data.yaml")


def test_what_is_put_is_listed_and_got_again(tmp_path):
    content = os.urandom(3 * 2**20)
    (tmp_path / "own").write_bytes(content)
    store = RemoteStore(f"file://{tmp_path}/there")
    store.put([(tmp_path / "own", "weights/last.pt"), (tmp_path / "own", "b")])
    listed = store.list()
    assert [(one.path, one.size) for one in listed] == [("b", len(content)), ("weights/last.pt", len(content))]
    seen = []
    store.get(listed, tmp_path / "here", seen.append)
    assert files_below(tmp_path / "here") == ["b", "weights/last.pt"]
    assert (tmp_path / "here" / "weights/last.pt").read_bytes() == content
    assert sorted(line["got"] for line in seen if "got" in line) == ["b", "weights/last.pt"]


def test_a_file_of_another_size_than_listed_gets_no_name(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a").write_bytes(b"short")
    with pytest.raises(StoreError, match="5 of 6 bytes arrived"):
        RemoteStore(f"file://{tmp_path}/there").get([RemoteFile("a", 6)], tmp_path / "here", print)
    assert files_below(tmp_path / "here") == []


def test_what_is_not_there_and_what_nobody_knows_are_named(tmp_path):
    with pytest.raises(StoreError, match=r"No such file.*FileNotFoundError"):
        RemoteStore(f"file://{tmp_path}").list("absent.yaml")
    with pytest.raises(StoreError, match="nosuch"):
        RemoteStore("nosuch://bucket/set").list()


def test_a_scheme_whose_package_is_missing_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "s3fs.py").write_text("raise ImportError('no s3fs here')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StoreError, match=r"pip install 'yolo-launch\[s3\]'"):
        RemoteStore("s3://bucket/set").list()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_time_limit_that_is_none_is_refused(text):
    with pytest.raises(LaunchError, match="cannot be used"):
        timeout_from({"YOLO_LAUNCH_REMOTE_TIMEOUT": text})


@pytest.mark.slow
def test_s3_gives_back_what_it_was_given_in_several_parts(bucket, tmp_path):
    content = os.urandom(12 * 2**20)  # three parts
    (tmp_path / "own").write_bytes(content)
    store = RemoteStore(f"{bucket}/run", timeout_s=60)
    store.put([(tmp_path / "own", "weights/last.pt")])
    (listed,) = store.list()
    store.get([listed], tmp_path / "here", print)
    assert (tmp_path / "here" / "weights/last.pt").read_bytes() == content


@pytest.mark.slow
def test_a_stopped_server_is_given_up_in_time(bucket, s3_server, tmp_path):
    (tmp_path / "own").write_bytes(b"x")
    s3_server.send(signal.SIGSTOP)
    for ask in (
        lambda: RemoteStore(f"{bucket}/run").list(),
        lambda: RemoteStore(f"{bucket}/run").put([(tmp_path / "own", "a")]),
    ):
        began_at = time.monotonic()
        with pytest.raises(StoreError, match="has not answered for 8 s"):
            ask()
        assert time.monotonic() - began_at < REPORT_S + 20


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_server_that_ends_in_the_middle_leaves_no_short_file(bucket, s3_server, tmp_path, signum):
    (tmp_path / "own").write_bytes(os.urandom(8 * 2**20))
    store = RemoteStore(f"{bucket}/set", timeout_s=20)  # the server answers slowly on a busy machine
    store.put([(tmp_path / "own", f"{number:02d}") for number in range(12)])
    listed = store.list()
    arrived = []

    def end_it(line) -> None:
        if "got" in line:
            arrived.append(line["got"])
            s3_server.send(signum)

    with pytest.raises(StoreError):
        store.get(listed, tmp_path / "here", end_it)
    assert arrived
    whole = [name for name in files_below(tmp_path / "here") if not name.endswith(".tmp")]
    assert 0 < len(whole) < 12
    assert {(tmp_path / "here" / name).stat().st_size for name in whole} == {8 * 2**20}


@pytest.mark.slow
def test_a_missing_bucket_and_a_server_that_is_not_there_are_said(bucket, s3_server):
    with pytest.raises(StoreError, match="FileNotFoundError"):
        RemoteStore("s3://no-such-bucket").list("data.yaml")
    s3_server.close()
    with pytest.raises(StoreError, match=r"Could not connect|has not answered"):
        RemoteStore(bucket).list("data.yaml")


def test_transfers_of_several_launchers_do_not_meet(tmp_path):
    (tmp_path / "own").write_bytes(os.urandom(2**20))
    stores = [RemoteStore(f"file://{tmp_path}/there") for _ in range(3)]
    threads = [threading.Thread(target=one.put, args=([(tmp_path / "own", "a")],)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files_below(tmp_path / "there") == ["a"]
