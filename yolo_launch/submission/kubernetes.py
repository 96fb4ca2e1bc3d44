"""Writes manifests for Kubernetes: a TrainJob, a PyTorchJob, or an Indexed Job with the Service that names its pods."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from trainer.protocol import LAST_WEIGHTS, RunFiles
from yolo_launch.errors import LaunchError
from yolo_launch.nodes.identity import TOKEN_VARIABLE
from yolo_launch.submission.job import SubmittedJob
from yolo_launch.submission.submit_options import KINDS

_GRACE_S = 90
"""Longer than the seconds that workers have to save after a SIGTERM."""
_BACKOFF_LIMIT = 20
_SHM = "dev-shm"
_RUNTIME = "torch-distributed"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_MOUNTED = rf"({_LABEL}):(/[\w./-]+)"


class _ManifestDumper(yaml.SafeDumper):
    """Writes shell as it is read, line by line, and repeats what stands twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Returns True: both halves of a PyTorchJob can then be changed alone."""
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indents the elements of a list below its key."""
        super().increase_indent(flow, indentless=False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_ManifestDumper.add_representer(str, _represent_text)


def manifests(job: SubmittedJob) -> str:
    """Returns the manifests as YAML. Raises LaunchError for an option that is missing or cannot be used."""
    asked = job.options
    if not asked.image:
        raise LaunchError(
            "A pod needs an image.",
            seen="no --image",
            expected="--image NAME:TAG, an image with yolo-launch in it",
            next_command="yolo-launch submit --help",
        )
    kind = asked.kind or KINDS[0]
    if kind != KINDS[0] and asked.runtime:
        raise LaunchError(
            "--runtime is an option of a TrainJob.", seen=f"--kind {kind} --runtime", expected=f"--kind {KINDS[0]}"
        )
    made = {"trainjob": _train_job, "pytorchjob": _pytorch_job, "job": _indexed_job}[kind](job)
    return "---\n".join(yaml.dump(one, Dumper=_ManifestDumper, sort_keys=False, width=1000) for one in made)


def next_commands(job: SubmittedJob, path: str) -> list[tuple[str, str]]:
    """Returns what to type once the manifests at ``path`` are applied, each with what it does."""
    inside = f" --namespace {job.options.namespace}" if job.options.namespace else ""
    first = "batch.kubernetes.io/job-completion-index=0"
    of_kind = {
        "trainjob": f"--selector jobset.sigs.k8s.io/jobset-name={job.name},{first}",
        "pytorchjob": f"{job.name}-master-0",
        "job": f"--selector job-name={job.name},{first}",
    }
    logs = of_kind[job.options.kind or KINDS[0]]
    return [
        (f"kubectl get pods{inside}", "whether its pods run"),
        (f"kubectl logs --follow{inside} {logs}", "what the master says"),
        (f"kubectl delete{inside} --filename {shlex.quote(path)}", "ends it with its state saved"),
    ]


def _metadata(job: SubmittedJob) -> dict[str, str]:
    asked = job.options
    return {"name": job.name, **({"namespace": asked.namespace} if asked.namespace else {})}


def _train_job(job: SubmittedJob) -> list[dict[str, Any]]:
    asked = job.options
    if asked.volumes:
        raise LaunchError(
            "The volumes of a TrainJob stand in its runtime.",
            seen=f"--volumes {asked.volumes}",
            expected="--runtime NAME of a runtime with these volumes, or --kind job or pytorchjob",
        )
    trainer = {
        "image": asked.image,
        "numNodes": job.nodes[1],
        "command": ["bash", "-c"],
        "args": [_as_argument(_shell(job))],
        **_environment(job),
        **_resources(job, "resourcesPerNode"),
    }
    spec = {"runtimeRef": {"name": asked.runtime or _RUNTIME}, "trainer": trainer}
    return [
        {"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": _metadata(job), "spec": spec}
    ]


def _pytorch_job(job: SubmittedJob) -> list[dict[str, Any]]:
    # The operator wants the container to have this name.
    pod = {"spec": _pod(job, "pytorch")}
    replicas = {"Master": {"replicas": 1, "restartPolicy": "OnFailure", "template": pod}}
    if job.nodes[1] > 1:
        replicas["Worker"] = {**replicas["Master"], "replicas": job.nodes[1] - 1}
    # The published schema wants a policy; this one leaves the pods, so that their logs can be read.
    spec = {"runPolicy": {"cleanPodPolicy": "None"}, "pytorchReplicaSpecs": replicas}
    return [{"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": _metadata(job), "spec": spec}]


def _indexed_job(job: SubmittedJob) -> list[dict[str, Any]]:
    service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": job.name}}
    pod = {"subdomain": job.name, "restartPolicy": "OnFailure", **_pod(job, "train")}
    spec = {
        "completionMode": "Indexed",
        "completions": job.nodes[1],
        "parallelism": job.nodes[1],
        "backoffLimit": _BACKOFF_LIMIT,
        "template": {"spec": pod},
    }
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(job), "spec": service},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(job), "spec": spec},
    ]


def _pod(job: SubmittedJob, container: str) -> dict[str, Any]:
    claims = _claims(job)
    mounts = [{"name": claim, "mountPath": path} for claim, path in claims]
    return {
        "terminationGracePeriodSeconds": _GRACE_S,
        "containers": [
            {
                "name": container,
                "image": job.options.image,
                "command": ["bash", "-c"],
                "args": [_as_argument(_shell(job))],
                **_environment(job),
                **_resources(job, "resources"),
                "volumeMounts": [*mounts, {"name": _SHM, "mountPath": "/dev/shm"}],
            }
        ],
        "volumes": [
            *({"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in dict(claims)),
            {"name": _SHM, "emptyDir": {"medium": "Memory"}},
        ],
    }


def _claims(job: SubmittedJob) -> list[tuple[str, str]]:
    """Returns pairs of a claim and where it is mounted."""
    text = job.options.volumes or f"{job.name}-data:/data,{job.name}-runs:/runs"
    found = [re.fullmatch(_MOUNTED, one) for one in text.split(",")]
    pairs = [(one[1], one[2]) for one in found if one]
    if len(pairs) < len(found) or len({path for _, path in pairs}) < len(pairs):
        raise LaunchError(
            "--volumes cannot be used.",
            seen=f"--volumes {text}",
            expected="claims and paths that differ, as in coco-data:/data,coco-runs:/runs",
        )
    return pairs


def _environment(job: SubmittedJob) -> dict[str, Any]:
    secret = job.options.token_secret
    if not secret:
        return {}
    return {
        "env": [{"name": TOKEN_VARIABLE, "valueFrom": {"secretKeyRef": {"name": secret, "key": "token"}}}],
    }


def _resources(job: SubmittedJob, key: str) -> dict[str, Any]:
    asked = job.options
    limits = {"nvidia.com/gpu": asked.gpus_per_node, "cpu": asked.cpus_per_node}
    given = {name: count for name, count in limits.items() if count}
    return {key: {"limits": given}} if given else {}


def _as_argument(text: str) -> str:
    """Returns a text that a container gets as it is: Kubernetes would put variables for ``$(NAME)``."""
    return text.replace("$(", "$$(")


def _shell(job: SubmittedJob) -> str:
    """Returns what each container runs. bash gives its place to the launcher, which then gets the pod's SIGTERM."""
    project, name = job.project or "/runs", job.run_name or job.name
    lines: list[str] = []
    place: list[str] = []
    if job.options.kind == "job":
        master = f"{job.name}-0.{job.name}"
        # The name exists once the first pod has an address.
        lines.append(f"until getent hosts {master} > /dev/null; do sleep 1; done")
        place = ["--master", master, "--nodes", job.options.nodes]
    elif job.is_elastic:
        place = ["--nodes", job.options.nodes]
    ours = ["--project", project] if not job.project else []
    ours += ["--name", name] if not job.run_name else []
    command = shlex.join(["yolo-launch", job.command, *place])
    typed = shlex.join(job.kept_words())
    if not job.is_training:
        first = f"{command} {shlex.join(ours)}".rstrip()
        return "\n".join([*lines, f"exec {first} \\", f"    {typed}", ""])
    run = Path(project) / name
    checkpoint = RunFiles(run).weights / LAST_WEIGHTS
    resume = shlex.join(["--resume", str(run)])
    lines += [
        f"resume=({shlex.join(job.fresh_only())})",
        f"if [ -e {shlex.quote(str(checkpoint))} ]; then resume=({resume}); fi",
        f"exec {command} {typed}".rstrip() + " \\",
        "    " + shlex.join([*ours, "--exist-ok"]) + ' "${resume[@]}"',
    ]
    return "\n".join([*lines, ""])
