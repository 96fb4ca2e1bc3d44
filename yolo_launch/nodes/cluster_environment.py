"""Reads a machine's part in a job from the variables of Slurm, the training operator (PET_*) and MASTER_ADDR.

Nothing but the mapping passed in is read. Options that a user types win over it; that is the caller's part.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trainer.protocol import RUN_ID_VARIABLE
from yolo_launch.errors import LaunchError
from yolo_launch.request.command_line import retype

_PET_CLUSTER_VARIABLES = ("PET_NNODES", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_RDZV_ENDPOINT")
_FIRST_RESERVED_STEP = 0xFFFFFFF0
"""Slurm gives the batch script and the shell of an interactive allocation step numbers from here on."""
_FIRST_SLURM_PORT = 15000
_MOST_HOSTS = 100_000
_A_RANK = "a node rank: 0 on the master, then 1, 2, ..."
_A_PORT = "a port from 1 to 65535"
_A_COUNT = "a number of machines above 0"
_A_RANGE = "a number of machines, such as 2, or a range, such as 1:4"
_A_NODELIST = "host names as Slurm writes them, such as gpu[01-03,7],login"


@dataclass(frozen=True)
class ClusterFacts:
    """Holds a node's part in a job as its environment describes it; None and '' for what is not set."""

    source: str = ""
    """Origin of the values: 'Slurm job 42', 'the training operator (PET_*)', 'MASTER_ADDR', ...; may be empty."""
    node_rank: int | None = None
    min_nodes: int | None = None
    max_nodes: int | None = None
    """Both the same unless the source gives a range."""
    nproc_per_node: int | None = None
    master: str = ""
    """Name or address of the first machine, as written."""
    port: int | None = None
    job_id: str = ""
    """The same on every machine of a job and on no other job; empty if the source has no such thing."""


def read_cluster(environ: Mapping[str, str], typed: Sequence[str]) -> ClusterFacts:
    """Returns the facts of a Slurm step, else of PET_*, else of MASTER_ADDR, else of the index of an Indexed Job.

    ``typed`` is the command as typed, for the line that an error proposes.
    Raises LaunchError for a value that cannot be read, naming its variable, and for several launchers on one machine.
    """
    if environ.get(RUN_ID_VARIABLE):
        return ClusterFacts()
    if _is_in_slurm_step(environ):
        return _read_slurm(environ, typed)
    if environ.get("LOCAL_RANK"):
        # A worker of another launcher: its RANK and WORLD_SIZE count processes, not machines.
        return ClusterFacts()
    if any(environ.get(name) for name in _PET_CLUSTER_VARIABLES):
        return _read_pet(environ)
    if environ.get("MASTER_ADDR"):
        return _read_master_addr(environ)
    if environ.get("JOB_COMPLETION_INDEX"):
        return ClusterFacts("the Indexed Job (JOB_COMPLETION_INDEX)", node_rank=_node_rank(environ, ()))
    return ClusterFacts()


def srun_line(environ: Mapping[str, str], typed: Sequence[str]) -> str:
    """Returns the line that starts ``typed`` once on each machine of this Slurm job; empty outside Slurm jobs."""
    if not _slurm_job(environ):
        return ""
    nodes = _first(environ, "SLURM_JOB_NUM_NODES", "SLURM_NNODES")[1] or "N"
    # --ntasks too: a job's own --ntasks, which srun inherits, would overrule --ntasks-per-node.
    return f"srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 {retype(typed, {})}"


def expand_nodelist(text: str, name: str = "the node list") -> list[str]:
    """Returns host names from Slurm's short form, in order: 'r[1-2]n[01-02],login' as r1n01, r1n02, r2n01, ..., login.

    Raises LaunchError, which calls the text ``name``.
    """
    if not text.strip():
        return []
    hosts: list[str] = []
    for element in re.split(r",(?![^\[]*\])", text.strip()):
        if not re.fullmatch(r"(?:[A-Za-z0-9._:-]+|\[[0-9,-]+\])+", element):
            raise _unreadable(name, text, _A_NODELIST)
        parts = [_expand_part(part, name, text) for part in re.findall(r"\[[^\]]*\]|[^\[]+", element)]
        if len(hosts) + math.prod(len(part) for part in parts) > _MOST_HOSTS:
            raise _unreadable(name, text, f"at most {_MOST_HOSTS} machines")
        hosts += ["".join(chosen) for chosen in itertools.product(*parts)]
    return hosts


def _expand_part(part: str, name: str, text: str) -> list[str]:
    """Returns 01, 02, 03, 7 for '[01-03,7]'; a part without brackets as it is."""
    if not part.startswith("["):
        return [part]
    numbers: list[str] = []
    for item in part[1:-1].split(","):
        found = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", item)
        if not found:
            raise _unreadable(name, text, _A_NODELIST)
        first, last = found[1], found[2] or found[1]
        if not 0 <= int(last) - int(first) < _MOST_HOSTS:
            raise _unreadable(name, text, f"ranges from low to high, of at most {_MOST_HOSTS} machines")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def _slurm_job(environ: Mapping[str, str]) -> str:
    return _first(environ, "SLURM_JOB_ID", "SLURM_JOBID")[1]


def _is_in_slurm_step(environ: Mapping[str, str]) -> bool:
    """Returns whether srun started this process; a job's variables alone are set in its batch script and shells too."""
    step = _first(environ, "SLURM_STEP_ID", "SLURM_STEPID")[1]
    return bool(_slurm_job(environ)) and step.isdecimal() and int(step) < _FIRST_RESERVED_STEP


def _read_slurm(environ: Mapping[str, str], typed: Sequence[str]) -> ClusterFacts:
    name, nodelist = _first(environ, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    hosts = expand_nodelist(nodelist, name)
    # The step's own numbers come first: it may use fewer machines than the job has.
    nodes = _number(
        environ, "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES", expected=_A_COUNT, smallest=1
    )
    nodes = nodes or len(hosts) or None
    _refuse_several_launchers(environ, nodes, typed)
    job = _number(environ, "SLURM_JOB_ID", "SLURM_JOBID", expected="the number of a job")
    restarts = _number(environ, "SLURM_RESTART_COUNT", expected="how often the job was requeued")
    job_id = f"{job}.{_first(environ, 'SLURM_STEP_ID', 'SLURM_STEPID')[1]}"
    return ClusterFacts(
        source=f"Slurm job {job}",
        node_rank=_number(environ, "SLURM_NODEID", expected=_A_RANK),
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=_gpus_on_node(environ),
        master=hosts[0] if hosts else "",
        port=_FIRST_SLURM_PORT + (job or 0) % 10_000,
        job_id=f"{job_id}.{restarts}" if restarts else job_id,
    )


def _refuse_several_launchers(environ: Mapping[str, str], nodes: int | None, typed: Sequence[str]) -> None:
    """Raises LaunchError if the step starts more than one launcher on some machine."""
    name, tasks = _first(environ, "SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE")
    is_several = False
    for item in tasks.split(",") if tasks else []:
        found = re.fullmatch(r"([0-9]{1,10})(?:\(x[0-9]{1,10}\))?", item.strip())
        if not found:
            raise _unreadable(name, tasks, "tasks of each machine, such as 1(x4)")
        is_several = is_several or int(found[1]) > 1
    local = _number(environ, "SLURM_LOCALID", expected="the number of a task on its machine") or 0
    if not is_several and not local:
        return
    raise LaunchError(
        "Slurm starts more than one launcher on a machine.",
        seen=f"{name}={tasks}" if is_several else f"SLURM_LOCALID={local}",
        expected="one on each machine, which starts a worker for every GPU there",
        next_command=srun_line({**environ, "SLURM_JOB_NUM_NODES": str(nodes or "N")}, typed),
    )


def _gpus_on_node(environ: Mapping[str, str]) -> int | None:
    """Returns the number of GPUs that Slurm gave here: '4', or by type, 'a100:2,v100:1'; None for none."""
    text = environ.get("SLURM_GPUS_ON_NODE", "").strip()
    if not text:
        return None
    counts = [item.rpartition(":")[2] for item in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,4}", count) for count in counts):
        raise _unreadable("SLURM_GPUS_ON_NODE", text, "a number of GPUs, such as 4 or a100:4")
    return sum(int(count) for count in counts) or None


def _read_pet(environ: Mapping[str, str]) -> ClusterFacts:
    host, port = _read_endpoint(environ)
    if not host:
        host = _first(environ, "PET_MASTER_ADDR", "MASTER_ADDR")[1]
    if port is None:
        port = _number(environ, "PET_MASTER_PORT", "MASTER_PORT", expected=_A_PORT, smallest=1, largest=65535)
    low, high = _read_range(environ, "PET_NNODES")
    if low is None:
        low = high = _nodes_of_process_variables(environ)
    facts = ClusterFacts(
        source="the training operator (PET_*)",
        node_rank=_node_rank(environ, ("PET_NODE_RANK", "NODE_RANK", "GROUP_RANK", "RANK")),
        min_nodes=low,
        max_nodes=high,
        nproc_per_node=_pet_nproc(environ),
        master=host,
        port=port,
        job_id=environ.get("PET_RDZV_ID", "").strip(),
    )
    return replace(facts, node_rank=_pod_ordinal(environ, host)) if facts.node_rank is None else facts


def _read_master_addr(environ: Mapping[str, str]) -> ClusterFacts:
    master = environ["MASTER_ADDR"].strip()
    low, high = _read_range(environ, "NNODES")
    if low is None:
        low = high = _nodes_of_process_variables(environ)
    rank = _node_rank(environ, ("NODE_RANK", "GROUP_RANK", "RANK"))
    return ClusterFacts(
        source="MASTER_ADDR",
        node_rank=_pod_ordinal(environ, master) if rank is None else rank,
        min_nodes=low,
        max_nodes=high,
        master=master,
        port=_number(environ, "MASTER_PORT", expected=_A_PORT, smallest=1, largest=65535),
    )


def _node_rank(environ: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    return _number(environ, *names, "JOB_COMPLETION_INDEX", expected=_A_RANK)


def _nodes_of_process_variables(environ: Mapping[str, str]) -> int | None:
    """Returns GROUP_WORLD_SIZE; else WORLD_SIZE if RANK numbers the machines, as PyTorchJob v1 sets both."""
    names = ["GROUP_WORLD_SIZE"]
    if not _first(environ, "PET_NODE_RANK", "NODE_RANK", "GROUP_RANK")[1] and environ.get("RANK"):
        names.append("WORLD_SIZE")
    return _number(environ, *names, expected=_A_COUNT, smallest=1)


def _pod_ordinal(environ: Mapping[str, str], master: str) -> int | None:
    """Returns a pod's number if pods are called NAME-0, NAME-1, ... and NAME-0 is the master; else None."""
    own = re.fullmatch(r"(.+)-([0-9]{1,6})", environ.get("HOSTNAME", "").split(".")[0])
    if own and environ.get("KUBERNETES_SERVICE_HOST") and master.split(".")[0] == f"{own[1]}-0":
        return int(own[2])
    return None


def _pet_nproc(environ: Mapping[str, str]) -> int | None:
    if environ.get("PET_NPROC_PER_NODE", "").strip() in ("auto", "gpu", "cpu", "xpu"):
        return None
    return _number(environ, "PET_NPROC_PER_NODE", expected="a number of workers, auto, gpu or cpu", smallest=1)


def _read_endpoint(environ: Mapping[str, str]) -> tuple[str, int | None]:
    """Returns host and port of PET_RDZV_ENDPOINT: 'host:port', 'host', '[::1]:port' or '::1'."""
    text = environ.get("PET_RDZV_ENDPOINT", "").strip()
    if re.fullmatch(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", text):
        return text, None
    found = re.fullmatch(r"(?:\[([^\]]+)\]|([^\[\]:]+))(?::(.+))?", text)
    if text and not found:
        raise _unreadable("PET_RDZV_ENDPOINT", text, "host:port")
    if not found:
        return "", None
    port = found[3] or ""
    if port and not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536):
        raise _unreadable("PET_RDZV_ENDPOINT", text, f"host:port, with {_A_PORT}")
    return found[1] or found[2], int(port) if port else None


def _read_range(environ: Mapping[str, str], name: str) -> tuple[int | None, int | None]:
    """Returns (2, 2) for '2' and (1, 4) for '1:4'; Nones if the variable is not set."""
    text = environ.get(name, "").strip()
    if not text:
        return None, None
    found = re.fullmatch(r"([0-9]{1,10})(?::([0-9]{1,10}))?", text)
    low = int(found[1]) if found else 0
    high = int(found[2] or low) if found else 0
    if not 0 < low <= high:
        raise _unreadable(name, text, _A_RANGE)
    return low, high


def _first(environ: Mapping[str, str], *names: str) -> tuple[str, str]:
    """Returns name and value of the first variable that is set to something; the last name and '' if none is."""
    for name in names:
        if environ.get(name, "").strip():
            return name, environ[name].strip()
    return names[-1], ""


def _number(
    environ: Mapping[str, str], *names: str, expected: str, smallest: int = 0, largest: int = 0xFFFFFFFF
) -> int | None:
    """Returns the first variable that is set, as a number; None if none is. Raises LaunchError that names it."""
    name, text = _first(environ, *names)
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,10}", text) or not smallest <= int(text) <= largest:
        raise _unreadable(name, text, expected)
    return int(text)


def _unreadable(name: str, text: str, expected: str) -> LaunchError:
    return LaunchError(f"{name} cannot be used.", seen=f"{name}={text[:200]}", expected=expected)
