"""The KubeRay files have the structure of KubeRay's v1 resources, this project's versions, and commands that parse.

The published schemas have 3 MB and are not in the repository; the parts below are written after those of KubeRay 1.7,
in which unknown fields are as wrong as here.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from zar_ray.commands.parsing import parse_run
from zar_ray.serving import proxy
from zar_ray.serving.application import options_of
from zar_ray.study.options import EvalConfig

FILES = sorted((Path(__file__).parents[2] / "deploy/kuberay").glob("*.yaml"))


def record(required: str = "", **properties):
    """An object with these fields alone."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT, COUNT, FLAG, TEXTS = (
    {"type": "string"},
    {"type": "integer", "minimum": 0},
    {"type": "boolean"},
    {"type": "object", "additionalProperties": {"type": "string"}},
)


def items(of):
    return {"type": "array", "items": of, "minItems": 1}


QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+(m|Mi|Gi)?$"}}
RESOURCES = record(requests=QUANTITIES, limits=QUANTITIES)
CONTAINER = record(
    "name image resources",
    name=TEXT,
    image=TEXT,
    ports=items(record("containerPort name", containerPort=COUNT, name={"type": "string", "maxLength": 15})),
    env=items(record("name value", name=TEXT, value=TEXT)),
    envFrom=items(record("secretRef", secretRef=record("name", name=TEXT, optional=FLAG))),
    resources=RESOURCES,
    volumeMounts=items(record("name mountPath", name=TEXT, mountPath=TEXT)),
)
VOLUME = record(
    "name",
    name=TEXT,
    persistentVolumeClaim=record("claimName", claimName=TEXT),
    emptyDir=record(medium={"const": "Memory"}, sizeLimit=TEXT),
)
TOLERATION = record(
    "operator effect",
    key=TEXT,
    operator={"enum": ["Equal", "Exists"]},
    value=TEXT,
    effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
)
POD = record(
    "spec",
    metadata=record(labels=TEXTS),
    spec=record(
        "containers",
        containers=items(CONTAINER),
        volumes=items(VOLUME),
        nodeSelector=TEXTS,
        tolerations=items(TOLERATION),
        restartPolicy={"const": "Never"},
        terminationGracePeriodSeconds=COUNT,
    ),
)
WORKERS = record(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = record(
    "rayVersion headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=record(
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=COUNT,
        resources=RESOURCES,
    ),
    headGroupSpec=record("rayStartParams template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=items(WORKERS),
)
SPECS = {
    "RayCluster": CLUSTER,
    "RayJob": record(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=CLUSTER,
    ),
    "RayService": record("serveConfigV2 rayClusterConfig", serveConfigV2=TEXT, rayClusterConfig=CLUSTER),
}


def of_kind(kind):
    (found,) = [one for one in (yaml.safe_load(file.read_text("utf-8")) for file in FILES) if one["kind"] == kind]
    return found


def cluster_of(resource):
    spec = resource["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def test_there_is_one_of_each():
    assert sorted(yaml.safe_load(file.read_text("utf-8"))["kind"] for file in FILES) == sorted(SPECS)


@pytest.mark.parametrize("kind", SPECS)
def test_the_structure_is_kuberays(kind):
    named = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}
    whole = record(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=record("name", name=named),
        spec=SPECS[kind],
    )
    jsonschema.Draft202012Validator(whole).validate(of_kind(kind))


@pytest.mark.parametrize("kind", SPECS)
def test_versions_are_those_that_were_tested(kind, pinned, project_version):
    cluster = cluster_of(of_kind(kind))
    assert cluster["rayVersion"] == pinned["ray"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {one["image"] for group in groups for one in group["template"]["spec"]["containers"]}
    # Without a registry's name, which is everybody's own.
    assert images == {f"zar-ray:{project_version}"}


@pytest.mark.parametrize("kind", SPECS)
def test_pods_have_what_they_mount_and_show_their_measures(kind):
    cluster = cluster_of(of_kind(kind))
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]
        assert pod["metadata"]["labels"] == {"app": "zar-ray"}
        (container,) = pod["spec"]["containers"]
        mounted = {one["name"] for one in container.get("volumeMounts", ())}
        assert mounted == {one["name"] for one in pod["spec"].get("volumes", ())}
        assert {"containerPort": 8080, "name": "metrics"} in container["ports"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        shared = [one for one in group["template"]["spec"]["volumes"] if one["name"] == "shm"]
        assert shared
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]


def test_spot_nodes_come_and_go_beside_nodes_that_only_decode():
    cluster = of_kind("RayCluster")["spec"]
    assert cluster["enableInTreeAutoscaling"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert {group["minReplicas"] for group in groups.values()} == {0}
    spot = groups["gpu-spot"]["template"]["spec"]
    ((label, value),) = spot["nodeSelector"].items()
    assert {"key": label, "operator": "Equal", "value": value, "effect": "NoSchedule"} in spot["tolerations"]
    assert "nvidia.com/gpu" in spot["containers"][0]["resources"]["limits"]
    decode = groups["decode"]["template"]["spec"]
    assert "nvidia.com/gpu" not in decode["containers"][0]["resources"]["limits"]
    assert "nodeSelector" not in cluster["headGroupSpec"]["template"]["spec"]


def test_the_job_is_an_evaluation_that_a_new_cluster_goes_on_with(deploy, repository):
    spec = of_kind("RayJob")["spec"]
    python, script, *words = shlex.split(spec["entrypoint"])
    assert python == "python"
    folder = re.search(r"^WORKDIR (.+)$", (deploy / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert folder is not None
    assert (repository / Path(script).relative_to(folder[1])).is_file()
    options = parse_run(EvalConfig, words, "zar eval").options
    assert options.output.startswith("s3://")
    assert options.name
    assert spec["backoffLimit"] > 0
    assert not options.overwrite


def test_the_service_is_what_ray_serve_and_zar_ray_take(repository):
    resource = of_kind("RayService")["spec"]
    config = yaml.safe_load(resource["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    own = yaml.safe_load((repository / "serve/config.yaml").read_text("utf-8"))["applications"][0]
    assert application["import_path"] == own["import_path"]
    assert {one["name"] for one in application["deployments"]} == {one["name"] for one in own["deployments"]}
    options = options_of(application["args"])
    assert options.tokens == ()  # nobody's token is everybody's
    assert options.allowed_hosts == ()
    cluster = resource["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        environment = {one["name"]: one["value"] for one in group["template"]["spec"]["containers"][0]["env"]}
        module, _, name = environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].rpartition(".")
        assert (module, hasattr(proxy, name)) == (proxy.__name__, True)
        (ingress,) = [one for one in application["deployments"] if one["name"] == "ingress"]
        limits = options.limits
        admitted = (limits.concurrent + limits.queued + limits.streams) * ingress["num_replicas"]
        assert environment["ZAR_SERVE_REQUESTS"] == str(admitted)
        assert {"containerPort": 8000, "name": "serve"} in group["template"]["spec"]["containers"][0]["ports"]
