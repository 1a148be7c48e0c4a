import http.server
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from zar_ray.commands import doctor
from zar_ray.commands.doctor import PACKAGES, Check, diagnose
from zar_ray.tracking import default_uri


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder of this test's own for everything, no cluster, and no network beyond this machine."""
    if request.node.get_closest_marker("process") is None:
        here = lambda paths, read, **_: [read(path) for path in paths]  # noqa: E731
        monkeypatch.setattr("zar_ray.commands.doctor.in_processes", here)
    work = tmp_path / "what? 100%25 #1"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("ZAR_HOME", str(work / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # No other test's Ray is seen.
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/zar-{os.getpid()}")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(work / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(work / "hub"), raising=False)
    return work


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def server() -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.process
def test_a_machine_without_a_network_gets_a_whole_report(machine: Path) -> None:
    started = time.monotonic()
    found = by_name(diagnose())
    assert time.monotonic() - started < 30
    for package in PACKAGES:
        assert found[package].status == "ok", found[package]
    assert {"python", "cpus", "memory"} <= found.keys()
    assert any(name.startswith("gpu") for name in found)
    assert found["decoder pyav"].status == "ok", found["decoder pyav"]
    assert found["decoder decord"].status in ("ok", "warning")
    assert found["resizing"].status == "ok", found["resizing"]
    weights = found["weights ViT-B-16-quickgelu"]
    assert weights.status == "warning"
    assert "--checkpoint" in weights.detail
    assert found["mlflow store"].status == "ok"
    assert found["mlflow store"].detail == default_uri(str(machine / "runs"))
    assert not (machine / "runs").exists()  # looking must not make anything
    assert found["ray cluster"].status == "ok"
    assert found["zar home"].status == "ok"
    assert all("\n" not in check.detail for check in found.values())


def test_frames_that_are_not_resized_by_compiled_code_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "order_of", lambda *_: None)
    (check,) = doctor._resizing()
    assert check.status == "warning"
    assert "Pillow itself takes about three times the CPU" in check.detail


def test_what_cannot_be_reached_is_named_with_a_way_out(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = machine / "file"
    blocked.write_text("")
    monkeypatch.setenv("ZAR_HOME", str(blocked / "home"))
    address = f"127.0.0.1:{closed_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = by_name(diagnose(mlflow_uri=f"http://{address}"))
    assert found["ray cluster"].status == "missing"
    assert found["ray cluster"].detail.startswith(f"{address}: ")
    assert "RAY_ADDRESS" in found["ray cluster"].detail
    assert found["mlflow store"].status == "warning"
    assert "zar report mlflow" in found["mlflow store"].detail
    assert found["zar home"].status == "missing"
    assert "ZAR_HOME" in found["zar home"].detail


def test_a_stale_address_file_and_a_long_folder_are_seen(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(f"/tmp/zar-{os.getpid()}-".ljust(90, "x"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    (folder / "ray").mkdir(parents=True)
    address = f"127.0.0.1:{closed_port()}"
    (folder / "ray" / "ray_current_cluster").write_text(address)
    started = time.monotonic()
    try:
        found = by_name(diagnose(mlflow_uri="sqlite:///what?/mlflow.db"))
    finally:
        shutil.rmtree(folder)
    assert time.monotonic() - started < 30
    ray = found["ray cluster"]
    assert ray.status == "missing"
    assert ray.detail.startswith(f"{folder}/ray/ray_current_cluster names {address}: nothing answers there")
    assert "too long a path for Ray's sockets; set RAY_TMPDIR" in ray.detail
    assert "\n" not in ray.detail
    assert found["mlflow store"].status == "warning"
    assert "%3F" in found["mlflow store"].detail


def test_what_can_be_reached_is_ok(machine: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server)
    monkeypatch.setattr("zar_ray.cluster.problem_of", lambda place: None)
    found = by_name(diagnose(mlflow_uri=server, ray_address="10.0.0.1:6379"))
    assert found["mlflow store"] == Check("mlflow store", "ok", server)
    assert found["ray cluster"] == Check("ray cluster", "ok", "10.0.0.1:6379 answers")
    # This hub answers, but does not have the file.
    assert found["weights ViT-B-16-quickgelu"].status == "warning"
    assert "404" in found["weights ViT-B-16-quickgelu"].detail


def test_weights_in_the_local_cache_are_found(machine: Path) -> None:
    snapshot = machine / "hub" / "models--timm--vit_base_patch16_clip_224.openai" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").write_bytes(b"")
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    weights = by_name(diagnose())["weights ViT-B-16-quickgelu"]
    assert weights.status == "ok"
    assert str(snapshot) in weights.detail


@pytest.mark.parametrize("kind", ["broken", "whole", "read-only"])
def test_a_local_store_is_opened(machine: Path, kind: str) -> None:
    store = machine / "runs" / "mlflow.db"
    store.parent.mkdir()
    if kind == "whole":
        with sqlite3.connect(store) as database:
            database.execute("create table runs (name text)")
    elif kind == "broken":
        store.write_text("this is not a database, and it is long enough to be looked at")
    else:
        if os.geteuid() == 0:
            pytest.skip("the superuser may write anywhere")
        store.parent.chmod(0o500)
    found = by_name(diagnose())["mlflow store"]
    store.parent.chmod(0o700)
    assert found.status == ("ok" if kind == "whole" else "warning")
