"""`zar doctor`: what works on this machine and what does not: versions, hardware, decoders, what a run has to reach.

Everything is tried rather than looked up, and nothing that fails stops the rest.  Network checks give up after a few
seconds, so that a machine without a network hears of it soon.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sqlite3
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import psutil
from rich.table import Table

from zar_ray.commands.parsing import verb
from zar_ray.data.probing import Failure, in_processes, usable_cpus, usable_memory
from zar_ray.data.synthetic import write_video
from zar_ray.errors import TrackingError, VideoError, reason_of
from zar_ray.models.options import ModelOptions
from zar_ray.options.layers import zar_home
from zar_ray.provenance import package_version
from zar_ray.terminal import output_console
from zar_ray.tracking.store import absolute_uri, default_uri, sqlite_path
from zar_ray.video.options import Decoder
from zar_ray.video.reading import VideoInfo, open_video
from zar_ray.video.resampling import order_of

_T = TypeVar("_T")
Status = Literal["ok", "warning", "missing"]

PACKAGES = ("zar-ray", "ray", "torch", "torchvision", "open_clip_torch", "av", "mlflow", "pyarrow", "pydantic")
_NETWORK_SECONDS = 3.0
_CHECK_SECONDS = 60.0  # importing PyTorch from a cold disk takes long; it is not a fault
_LOW_DISK = 2 * 2**30
_TRIAL_FRAMES = 8


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: What.
        status: "ok"; "warning" where something will not work but there is a way around it; "missing" where zar-ray
            cannot work without.
        detail: What was found, and the way out where it is not well.
    """

    name: str
    status: Status
    detail: str


@verb("zar doctor")
def doctor_command(mlflow_uri: str | None = None) -> int:
    """Checks versions, CPUs, GPUs, decoders, and whether weights, MLflow and Ray can be reached.

    Args:
        mlflow_uri: A tracking store to try; by default a local one.
    """
    table = Table("", "what", "found", box=None, pad_edge=False)
    checks = diagnose(mlflow_uri)
    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "missing": "[red]missing[/]"}
    for check in checks:
        table.add_row(marks[check.status], check.name, check.detail)
    output_console().print(table)
    return 1 if any(check.status == "missing" for check in checks) else 0


def diagnose(mlflow_uri: str | None = None, ray_address: str | None = None) -> list[Check]:
    """Tries everything a run needs; never raises.

    Args:
        mlflow_uri: A tracking store to try; by default a SQLite file below the working folder, as runs make it.
        ray_address: A cluster to try; by default ``$RAY_ADDRESS``, or the one that `ray start` left running.

    Returns:
        The checks in the order they are best read in.
    """
    trials: list[tuple[str, Callable[[], list[Check]]]] = [
        ("versions", _versions),
        ("hardware", _hardware),
        ("gpus", _gpus),
        ("decoders", _decoders),
        ("resizing", _resizing),
        ("supply", _supply),
        ("speed", _speed),
        ("weights", _weights),
        ("mlflow", lambda: [_mlflow(mlflow_uri)]),
        ("ray", lambda: [_ray(ray_address)]),
        ("zar home", lambda: [_home()]),
    ]
    # All at once: some wait for the network, some import for seconds.
    running = [(name, _begun(trial)) for name, trial in trials]
    checks: list[Check] = []
    for name, trial in running:
        try:
            checks += trial.result(_CHECK_SECONDS)
        except TimeoutError:
            checks.append(Check(name, "missing", f"did not answer within {_CHECK_SECONDS:.0f} s"))
        except Exception as error:  # noqa: BLE001  a broken installation fails in any way; the report says which
            checks.append(Check(name, "missing", reason_of(error)))
    return checks


def _begun(function: Callable[[], _T]) -> Future[_T]:
    """Begins a function in a daemon thread: one that a silent name server holds up must not keep the program alive."""
    outcome: Future[_T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except Exception as error:  # noqa: BLE001  whoever waits for the outcome gets it
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def _versions() -> list[Check]:
    checks = [Check("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")]
    for package in PACKAGES:
        version = package_version(package)
        found = version or 'not installed; run "pip install zar-ray"'
        checks.append(Check(package, "ok" if version else "missing", found))
    return checks


def _hardware() -> list[Check]:
    cpus, everyone = usable_cpus(), os.cpu_count()
    memory = psutil.virtual_memory().total
    limit = usable_memory()
    return [
        Check("cpus", "ok", f"{cpus}" if cpus == everyone else f"{cpus} of {everyone} may be used"),
        Check("memory", "ok", _gib(memory) if limit == memory else f"{_gib(limit)} of {_gib(memory)} may be used"),
    ]


def _gpus() -> list[Check]:
    import torch

    from zar_ray.models.devices import unusable_gpu

    if (problem := unusable_gpu()) is not None:
        return [Check("gpus", "warning", problem)]
    if not torch.cuda.is_available():
        return [Check("gpus", "ok", "none; models run on the CPUs")]
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Check(f"gpu {n}", "ok", f"{gpu.name}, {_gib(gpu.total_memory)}") for n, gpu in enumerate(gpus)]


def _supply() -> list[Check]:
    """Whether the CPUs can decode for the GPUs, by default options."""
    import torch

    from zar_ray.evaluation.supply import supply

    # What PyTorch cannot use it counts all the same, by NVML.
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = supply([torch.cuda.get_device_name(index) for index in range(count)], usable_cpus())
    if found is None:
        return []
    usual = f"for ViT-B/16 and 10-s videos, {1000 * found.decode_seconds:.0f} ms of a core each"
    if found.warning is not None:
        return [Check("supply", "warning", f"{usual}: {found.warning}")]
    return [Check("supply", "ok", f"{usual}: the GPUs want about {found.wanted:.0f} cores, there are {found.cores}")]


def _speed() -> list[Check]:
    """How long a video would take on these CPUs, by default options, where no GPU is there."""
    import torch

    from zar_ray.evaluation.cpu_speed import spoken, usual_cpu_time

    if torch.cuda.is_available():
        return []
    found = usual_cpu_time(usable_cpus())
    usual = f"ViT-B/16 takes about {spoken(found.seconds)} of all CPUs for a 10-s video ({found.images} images)"
    return [Check("speed", "ok", f"{usual}, {3600 / found.seconds:.0f} videos an hour; {found.ways}")]


def _decoders() -> list[Check]:
    with tempfile.TemporaryDirectory(prefix="zar-doctor-") as folder:
        video = Path(folder) / "trial.mp4"
        # Grey, ever brighter.
        frames = np.empty((_TRIAL_FRAMES, 48, 64, 3), np.uint8)
        frames[:] = 20 * np.arange(1, _TRIAL_FRAMES + 1)[:, None, None, None]
        write_video(video, frames, fps=25)
        named: list[Decoder] = ["decord", "pyav"]
        if package_version("torchcodec") is not None:
            named.append("torchcodec")
        return [_decoder(decoder, video) for decoder in named]


def _decoder(decoder: Decoder, video: Path) -> Check:
    name = f"decoder {decoder}"
    version = package_version("av" if decoder == "pyav" else decoder)
    if version is None and decoder == "decord":
        return Check(name, "warning", "not installed (it has wheels for Linux x86-64 only); PyAV reads everything")
    # In a process of its own: a decoder that does not suit this machine may crash.
    (answer,) = in_processes([str(video)], partial(_read_all, decoder=decoder), workers=1, timeout=30.0)
    if isinstance(answer, Failure):
        way_out = "" if decoder == "pyav" or "--decoder" in answer.message else "; use --decoder pyav"
        return Check(name, "missing" if decoder == "pyav" else "warning", f"{version}: {answer.message}{way_out}")
    return Check(name, "ok", f"{version}, reads H.264")


def _resizing() -> list[Check]:
    """Whether frames of a usual size are resized by compiled code, as they are after a process's first videos."""
    compiled = order_of(256, 340, 224, 297, "bicubic") is not None
    versions = f"Pillow {package_version('pillow')}, numba {package_version('numba') or 'not installed'}"
    if compiled:
        return [Check("resizing", "ok", f"compiled, the values of Pillow ({versions})")]
    return [Check("resizing", "warning", f"not compiled; Pillow itself takes about three times the CPU ({versions})")]


def _read_all(path: str, decoder: Decoder) -> VideoInfo:
    """Reads the trial video and holds its frames against what was written."""
    with open_video(path, decoder) as reader:
        brightness = [float(frame.mean()) for frame in reader.read(np.arange(reader.info.frames))]
        written = 20.0 * np.arange(1, _TRIAL_FRAMES + 1)
        if len(brightness) != _TRIAL_FRAMES or np.abs(np.array(brightness) - written).max() > 6:
            raise VideoError(f"reads a trial video wrongly (brightness {', '.join(f'{b:.0f}' for b in brightness)})")
        return reader.info


def _weights() -> list[Check]:
    from huggingface_hub import constants, try_to_load_from_cache

    from zar_ray.models.openclip import open_clip

    default = ModelOptions.model_validate({})
    name = f"weights {default.model}"
    way_out = "give a local file with --checkpoint"
    source = open_clip.get_pretrained_cfg(default.model, default.pretrained or "")
    if not source:
        return [Check(name, "warning", f"this open_clip does not know {default.pretrained}; {way_out}")]
    # open_clip prefers the hub, and there the safetensors file.
    repository = source["hf_hub"].rpartition("/")[0]
    files = (open_clip.constants.HF_SAFE_WEIGHTS_NAME, open_clip.constants.HF_WEIGHTS_NAME)
    for file in files:
        if isinstance(cached := try_to_load_from_cache(repository, file), str):
            return [Check(name, "ok", f"in the local cache, {cached}")]
    if constants.HF_HUB_OFFLINE:
        return [Check(name, "warning", f"not in the local cache, and HF_HUB_OFFLINE is set; {way_out}")]
    problem = _in_time(lambda: _reach(f"{constants.ENDPOINT}/{repository}/resolve/main/{files[0]}", "HEAD"))
    if problem is None:
        return [Check(name, "ok", "not in the local cache; the hub can be reached, so the first use downloads them")]
    return [Check(name, "warning", f"not in the local cache, and the hub cannot be reached ({problem}); {way_out}")]


def _mlflow(uri: str | None) -> Check:
    way_out = "runs finish without; `zar report mlflow RUN` sends them later"
    try:
        uri = default_uri("runs") if uri is None else absolute_uri(uri)
    except TrackingError as error:
        return Check("mlflow store", "warning", str(error))
    scheme = uri.partition(":")[0] if ":" in uri else "a path"
    if scheme in ("http", "https"):
        problem = _in_time(lambda: _reach(f"{uri}/health", "GET"))
    elif (file := sqlite_path(uri)) is not None:
        problem = _sqlite_problem(file)
    else:
        return Check("mlflow store", "warning", f"{uri}: {scheme} is not tried here, only http(s) and sqlite are")
    if problem is None:
        return Check("mlflow store", "ok", uri)
    return Check("mlflow store", "warning", f"{uri}: {problem}; {way_out}")


def _sqlite_problem(file: Path) -> str | None:
    folder = next(one for one in file.parents if one.exists())
    if not folder.is_dir():
        return f"{folder} is not a folder"
    if not os.access(folder, os.W_OK):
        return f"{folder} is not writable"
    if file.exists():
        try:
            address = f"{file.as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=1.0)) as store:
                store.execute("select name from sqlite_master limit 1").fetchall()
        except sqlite3.Error as error:
            return f"cannot be opened ({error})"
    return None


def _ray(address: str | None) -> Check:
    from zar_ray.cluster import LOCAL, problem_of, usual_place

    place, shown = (address, address) if address else usual_place()
    problem, alone = problem_of(place), problem_of(LOCAL)
    if problem is None:
        return Check("ray cluster", "ok", "starts one of its own" if place == LOCAL else f"{shown} answers")
    if shown == place:
        return Check("ray cluster", "missing", f"{shown}: {problem}")
    # One that was left running: without it one is started.
    return Check(
        "ray cluster", "missing" if alone else "warning", "; ".join(filter(None, (f"{shown}: {problem}", alone)))
    )


def _home() -> Check:
    home = zar_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(b"zar")
        free = shutil.disk_usage(home).free
    except OSError as error:
        return Check("zar home", "missing", f"{home}: {error.strerror}; name another folder in ZAR_HOME")
    if free < _LOW_DISK:
        return Check("zar home", "warning", f"{home}: only {_gib(free)} free; name another folder in ZAR_HOME")
    return Check("zar home", "ok", f"{home}, {_gib(free)} free")


def _reach(url: str, method: str) -> str | None:
    """None if the server answers well, otherwise why not."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=_NETWORK_SECONDS).close()
    except urllib.error.HTTPError as error:
        return f"it answers {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return reason_of(getattr(error, "reason", error))
    return None


def _in_time(attempt: Callable[[], str | None]) -> str | None:
    """Runs a network attempt for a limited time: looking up a host's name knows no timeout of its own."""
    try:
        return _begun(attempt).result(2 * _NETWORK_SECONDS)
    except TimeoutError:
        return f"no answer within {2 * _NETWORK_SECONDS:.0f} s"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
