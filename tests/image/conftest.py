"""Containers in small, without a daemon and a registry: the Dockerfile on apt's Debian, and its command as PID 1."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

PROJECT_DIR = Path(__file__).resolve().parents[2]
PROGRAMS = ("mmdebstrap", "buildah", "unshare", "nsenter", "ip", "chroot")
USER = 54321
"""Neither the image's own user nor in its passwd."""
# An interpreter that is not Debian's is bound in where the official Python images have theirs.
IS_DEBIANS = sys.base_prefix == "/usr"
PACKAGES = "python3-venv" if IS_DEBIANS else "python3"  # for another interpreter: the libraries that it is linked to
LIBRARIES = "LD_LIBRARY_PATH=/usr/local/lib"
RECIPE = (
    *("--mode=root", "--variant=apt", f"--include={PACKAGES}"),
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
)
ENTER = """
set -e
root=$1 work=$2 prefix=$3 packages=$4
shift 4
mount --make-rprivate /
mount --bind "$root" "$root"
if [ -n "$prefix" ]; then mount --bind "$prefix" "$root/usr/local"; fi
mount --bind "$packages" "$root/deps"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=64m,mode=1777 shm "$root/dev/shm"
mount --rbind /sys "$root/sys"
mount --bind "$work" "$root/work"
mount -o remount,ro,bind "$root"
user=$1
shift
exec chroot --userspec="$user:$user" --groups= "$root" env -C /work "$@"
"""


def call(*command: str) -> str:
    """What the command says; a failure shows its words."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command[:4]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout.strip()


def debian_root() -> Path:
    """The archive of a Debian root, made once for each recipe from the sources that this machine's apt has."""
    facts = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if facts.get("ID") != "debian":
        pytest.skip("needs a Debian, whose apt sources make the container's root")
    suite = facts["VERSION_CODENAME"]
    key = hashlib.sha256("\n".join((suite, *RECIPE)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yolo-launch-ci"
    archive = cache / f"debian-{key}.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        apt = Path("/etc/apt")
        sources = [str(p) for p in (apt / "sources.list", apt / "sources.list.d/debian.sources") if p.exists()]
        beside = cache / f"debian-{key}.{os.getpid()}.tar"
        try:
            call("mmdebstrap", *RECIPE, suite, str(beside), *sources)
            beside.rename(archive)
        finally:
            beside.unlink(missing_ok=True)
    return archive


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a container of the Dockerfile's image; what pip would download is bound in."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(absent or PROGRAMS)}")
    store = tmp_path_factory.mktemp("store")
    buildah = ("buildah", "--root", str(store / "root"), "--runroot", str(store / "run"))
    try:
        base = call(*buildah, "from", "scratch")
        call(*buildah, "add", base, str(debian_root()), "/")
        call(*buildah, "config", "--env", "PYTHONPATH=/deps", "--env", LIBRARIES, base)
        call(*buildah, "commit", "--rm", base, "localhost/debian")
        packages = f"{packages_dir()}:/deps:ro"
        prefix = () if IS_DEBIANS else ("--volume", f"{sys.base_prefix}:/usr/local:ro")
        offline = "PIP_OPTIONS=--no-index --no-build-isolation --no-deps --ignore-installed"
        given = ("--build-arg", "BASE=localhost/debian", "--build-arg", offline)
        build = ("build", "--isolation", "chroot", "--layers=false", "--volume", packages, *prefix, *given)
        call(*buildah, *build, "--tag", "localhost/yolo-launch", str(PROJECT_DIR))
        facts = "{{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.User}} {{.OCIv1.Config.WorkingDir}}"
        said = call(*buildah, "inspect", "--type", "image", "--format", facts, "localhost/yolo-launch")
        assert said == "[yolo-launch] 65532:65532 /work"
        container = call(*buildah, "from", "--pull-never", "localhost/yolo-launch")
        root = Path(call(*buildah, "mount", container))
        (root / "deps").mkdir(exist_ok=True)
        # As runtimes give each container; without it, localhost has no address.
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
        next(root.glob("opt/yolo-launch/lib/python3*/site-packages")).joinpath("deps.pth").write_text("/deps\n")
        yield root
    finally:
        subprocess.run([*buildah, "rm", "--all"], capture_output=True, timeout=120)
        subprocess.run([*buildah, "rmi", "--all", "--force"], capture_output=True, timeout=120)


def packages_dir() -> Path:
    """The folder that torch is in: an environment's own, or one that it borrows."""
    import importlib.util

    found = importlib.util.find_spec("torch")
    return Path(found.origin).parents[1] if found and found.origin else Path(sysconfig.get_path("purelib"))


@pytest.fixture(scope="session")
def one_cpu() -> Iterator[Path]:
    """The file of processes of a control group that has the time of one CPU."""
    mount = Path("/sys/fs/cgroup")
    is_version_2 = (mount / "cgroup.controllers").exists()
    group = (mount if is_version_2 else mount / "cpu") / f"yolo-image-{os.getpid()}"
    try:
        if is_version_2:
            (mount / "cgroup.subtree_control").write_text("+cpu")
        group.mkdir()
        if is_version_2:
            (group / "cpu.max").write_text("100000 100000")
        else:
            (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError as error:
        pytest.skip(f"control groups cannot be made here: {error}")
    yield group / "cgroup.procs"
    for _ in range(50):  # the kernel forgets ended processes a moment later
        with contextlib.suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)


class Container:
    """A command as PID 1 on the image's root, read-only, for a user without a name. ``work`` is its /work."""

    def __init__(self, root: Path, work: Path, processes: Path) -> None:
        self.root, self.work, self.processes = root, work, processes
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *command: str, network: str = "") -> Container:
        inside = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "sh", "-c", ENTER, "sh")
        places = (str(self.root), str(self.work), "" if IS_DEBIANS else sys.base_prefix, str(packages_dir()))
        # Exactly these variables: as an image's, with no HOME.
        path = "PATH=/opt/yolo-launch/bin:/usr/local/bin:/usr/bin:/bin"
        variables = ("-i", path, LIBRARIES, "GOMP_SPINCOUNT=0")
        own_network = ("nsenter", f"--net=/run/netns/{network}") if network else ()
        quota = ("sh", "-c", 'echo $$ > "$0"; exec "$@"', str(self.processes))
        enter = (*inside, *places, str(USER), *variables, *command)
        self.process = subprocess.Popen(
            [*quota, *own_network, *enter],
            stdin=subprocess.DEVNULL,
            stdout=(self.work / "output").open("wb"),
            stderr=subprocess.STDOUT,
        )
        return self

    def run(self, *command: str) -> int:
        return self.start(*command).wait()

    @property
    def output(self) -> str:
        return (self.work / "output").read_text(errors="replace")

    def wait(self, timeout_s: float = 200.0) -> int:
        assert self.process is not None
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended after {timeout_s} s: {self.output}") from None

    def wait_for(self, text: str, timeout_s: float = 120.0) -> None:
        until = time.monotonic() + timeout_s
        while text not in self.output:
            assert self.process is not None
            assert self.process.poll() is None, self.output
            assert time.monotonic() < until, self.output
            time.sleep(0.1)

    def send(self, number: int) -> None:
        """To PID 1, as a container's runtime does."""
        assert self.process is not None
        (first,) = psutil.Process(self.process.pid).children()
        first.send_signal(number)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


@pytest.fixture
def container(image_root: Path, one_cpu: Path, tmp_path: Path) -> Iterator[Callable[[], Container]]:
    """Makes containers, each with a /work of its own that has the data."""
    made: list[Container] = []

    def make() -> Container:
        work = tmp_path / f"work{len(made)}"
        shutil.copytree(PROJECT_DIR / "tests/data/bccd", work / "bccd")
        work.chmod(0o777)
        made.append(Container(image_root, work, one_cpu))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def networks() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable: 10.79.0.1 and 10.79.0.2."""
    names = (f"yi{os.getpid()}a", f"yi{os.getpid()}b")
    try:
        for name in names:
            call("ip", "netns", "add", name)
        call("ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for index, name in enumerate(names):
            call("ip", "-n", name, "address", "add", f"10.79.0.{index + 1}/24", "dev", "eth0")
            call("ip", "-n", name, "link", "set", "eth0", "up")
            call("ip", "-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
