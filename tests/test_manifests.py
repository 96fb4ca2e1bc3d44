"""The manifests that ``submit kubernetes`` writes, held strictly against the published schemas."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs the extra test")
trainer_api = pytest.importorskip("kubeflow_trainer_api.models", reason="needs the extra test")
training_api = pytest.importorskip("kubeflow.training", reason="needs the extra test")
kubernetes_models = pytest.importorskip("kubernetes.client.models", reason="needs the extra test")

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "kubernetes"
SCALARS = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def manifest(kind):
    found = [one for path in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]
    (chosen,) = (one for one in found if one["kind"] == kind)
    return chosen


def faults_of(value, wanted, where):
    """What a value has that a model of the Python clients of Kubernetes has not; they check nothing themselves."""
    if found := re.fullmatch(r"list\[(.*)\]", wanted):
        items = value if isinstance(value, list) else [value]
        return [fault for item in items for fault in faults_of(item, found[1], f"{where}[]")]
    if found := re.fullmatch(r"dict\(str, (.*)\)", wanted):
        if not isinstance(value, dict):
            return [f"{where} is no mapping"]
        return [fault for key, item in value.items() for fault in faults_of(item, found[1], f"{where}.{key}")]
    if ".limits." in where and type(value) is int:
        return []  # a quantity is a number or a text, which the clients' types do not tell
    if wanted in SCALARS:
        is_number = wanted in ("int", "float") and isinstance(value, bool)
        return [] if isinstance(value, SCALARS[wanted]) and not is_number else [f"{where} is no {wanted}: {value!r}"]
    model = getattr(training_api, wanted, None) or getattr(kubernetes_models, wanted, None)
    if model is None or wanted == "object":
        return []
    if not isinstance(value, dict):
        return [f"{where} is no {wanted}"]
    names = {name: attribute for attribute, name in model.attribute_map.items()}
    faults = [f"{where} has no {key}" for key in value if key not in names]
    for key in value.keys() & names.keys():
        faults += faults_of(value[key], model.openapi_types[names[key]], f"{where}.{key}")
    return faults


def validate(document):
    """Raises ValueError for what a server with strict fields would refuse, or what would select nothing."""
    kind = document["kind"]
    if kind == "TrainJob":
        read = trainer_api.TrainerV1alpha1TrainJob.from_dict(document)  # raises for types and what is required
        if read.to_dict() != document:
            raise ValueError("a field that a TrainJob has not")
    elif kind == "PyTorchJob":
        faults = faults_of(document, "KubeflowOrgV1PyTorchJob", kind)
        spec = document["spec"]
        # Raises for one that is missing.
        training_api.KubeflowOrgV1PyTorchJobSpec(
            pytorch_replica_specs=spec.get("pytorchReplicaSpecs"), run_policy=spec.get("runPolicy")
        )
        if faults:
            raise ValueError(faults)
    else:
        try:
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            raise ValueError(str(error)) from error
        # The schemas let both be missing; then no pod has a name that the others find.
        if kind == "Service" and document["spec"].get("selector") != {"job-name": document["metadata"]["name"]}:
            raise ValueError("the Service selects no pod of the Job")
        if kind == "Job" and "subdomain" not in document["spec"]["template"]["spec"]:
            raise ValueError("the pods are in no Service")


KINDS = ("TrainJob", "PyTorchJob", "Service", "Job")
PLANTED = [
    ("TrainJob", "trainer/numNode", 2),
    ("TrainJob", "trainer/numNodes", "2"),
    ("TrainJob", "runtimeRef", None),
    ("PyTorchJob", "pytorchReplicaSpecs/Master/template/spec/volume", []),
    ("PyTorchJob", "pytorchReplicaSpecs/Worker/replicas", "1"),
    ("PyTorchJob", "pytorchReplicaSpecs", None),
    ("Service", "selectors", {}),
    ("Service", "publishNotReadyAddresses", "true"),
    ("Service", "selector", None),
    ("Job", "template/spec/subdomains", "coco"),
    ("Job", "completions", "2"),
    ("Job", "template/spec/subdomain", None),
]
"""A misspelled field, a text for a number, and what selects missing."""


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_valid(kind):
    validate(manifest(kind))


@pytest.mark.parametrize(("kind", "field", "value"), PLANTED)
def test_a_planted_fault_is_refused(kind, field, value):
    document = copy.deepcopy(manifest(kind))
    *parents, last = field.split("/")
    inner = document["spec"]
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    with pytest.raises(ValueError):  # noqa: PT011 - each library has words of its own
        validate(document)
