"""A real S3 server on this machine, in a process and an environment of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

SERVER = Path(os.environ.get("YOLO_LAUNCH_MOTO", "") or "no-server")
"""moto's environment, made by `make store`: its botocore is not that of s3fs."""
KEYS = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_DEFAULT_REGION": "us-east-1"}
START_S = 60.0


class S3Server:
    """A process that serves S3 on loopback."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        program = [SERVER / "bin" / "moto_server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()

    def _wait(self) -> None:
        give_up_at = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/moto-api/", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, "the server ended"
                assert time.monotonic() < give_up_at
                time.sleep(0.1)

    def send(self, signum: int) -> None:
        """Signals the server."""
        self.process.send_signal(signum)

    def close(self) -> None:
        """Ends the server."""
        for signum in (signal.SIGCONT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                self.send(signum)
        self.process.wait()


@pytest.fixture
def s3_server(monkeypatch):
    """A server for one test, and the environment in which s3fs finds it."""
    if not (SERVER / "bin" / "moto_server").exists():
        pytest.skip("no S3 server: make store, and YOLO_LAUNCH_MOTO=its folder")
    if importlib.util.find_spec("s3fs") is None:
        pytest.skip("the extra s3 is not installed")
    server = S3Server()
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


@pytest.fixture
def bucket(s3_server):
    """An empty bucket of the server: its URL."""
    import s3fs

    s3fs.S3FileSystem(skip_instance_cache=True, endpoint_url=s3_server.url).mkdir("bucket")
    return "s3://bucket"
