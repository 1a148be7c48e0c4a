"""Every measure that the dashboard asks for is one that the code, or Ray, tells."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import ray
import yaml

from zar_ray import cluster_measures

SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_sum", "_count", "_bucket")}


@pytest.fixture(scope="module")
def board(deploy):
    return json.loads((deploy / "grafana/zar-ray.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def queries(board):
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


@pytest.fixture(scope="module")
def told(repository):
    """The calls of `tell`: measures with the tags that they are given."""
    calls: dict[str, set[frozenset[str]]] = {}
    for file in (repository / "zar_ray").rglob("*.py"):
        text = file.read_text("utf-8")
        if "import SECONDS, tell" not in text and "import tell" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tell":
                assert isinstance(node.args[0], ast.Constant)
                tags = frozenset(keyword.arg or "" for keyword in node.keywords)
                calls.setdefault(str(node.args[0].value), set()).add(tags)
    return calls


def own_names():
    """Names in Prometheus, with their labels."""
    kinds = {
        "Counter": cluster_measures._COUNTERS,
        "Gauge": cluster_measures._GAUGES,
        "Histogram": cluster_measures._HISTOGRAMS,
    }
    return {
        f"ray_{name}{suffix}": set(tags) | ({"le"} if suffix == "_bucket" else set())
        for kind, names in kinds.items()
        for name, (_, tags) in names.items()
        for suffix in SUFFIXES[kind]
    }


def test_every_measure_is_told_with_its_tags(told):
    tables = {**cluster_measures._COUNTERS, **cluster_measures._GAUGES, **cluster_measures._HISTOGRAMS}
    assert told == {name: {frozenset(tags)} for name, (_, tags) in tables.items()}


def test_what_is_asked_for_is_there(queries):
    own = own_names()
    sources = [Path(ray.__path__[0]) / "dashboard/modules/reporter/reporter_agent.py"]
    sources += sorted((Path(ray.__path__[0]) / "serve/_private").glob("*.py"))
    of_ray = "".join(file.read_text("utf-8") for file in sources)
    for query in queries:
        names = re.findall(r"\bray_[a-z_]+", query)
        assert names, query
        for name in names:
            assert name in own or f'"{name.removeprefix("ray_")}"' in of_ray, name
            if name in own:
                labels = set(re.findall(r"(\w+)=", query)) | {
                    label.strip() for group in re.findall(r"by \(([^)]+)\)", query) for label in group.split(",")
                }
                assert labels <= own[name], query


def test_what_is_told_is_shown(queries):
    shown = {name for query in queries for name in re.findall(r"\bray_zar_[a-z_]+", query)}
    for name in cluster_measures._COUNTERS | cluster_measures._GAUGES | cluster_measures._HISTOGRAMS:
        assert any(one.startswith(f"ray_{name}") for one in shown), name


def test_panels_have_places_of_their_own(board):
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for panel in board["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert board["uid"] == "zar-ray"


def test_prometheus_scrapes_what_kuberay_labels_and_ray_lists(deploy):
    config = yaml.safe_load((deploy / "prometheus/prometheus.yaml").read_text("utf-8"))
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (files,) = jobs["ray"]["file_sd_configs"]
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    assert files["files"] == [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
    kept = {rule["source_labels"][0]: rule["regex"] for rule in jobs["ray-pods"]["relabel_configs"] if "regex" in rule}
    assert kept == {
        "__meta_kubernetes_pod_label_app": "zar-ray",
        "__meta_kubernetes_pod_container_port_name": "metrics",
    }
