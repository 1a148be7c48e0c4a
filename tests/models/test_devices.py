"""A GPU that PyTorch cannot use is refused in a line that says what to do; the CPU is taken where it is asked for."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from zar_ray.adaptation.adapter import VideoAdapter
from zar_ray.adaptation.options import AdaptationOptions
from zar_ray.commands import doctor
from zar_ray.data.class_texts import prompts_of
from zar_ray.errors import ModelError
from zar_ray.models.devices import pick_device, require_compiler, unusable_gpu
from zar_ray.models.loading import load_model
from zar_ray.models.precision import full_precision
from zar_ray.video.options import ViewConfig

pynvml = pytest.importorskip("pynvml", reason="NVIDIA's library is not there on this system")

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version {}). Please update your GPU driver by downloading and"
    " installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)


@pytest.fixture
def machine(monkeypatch):
    """A machine with some GPUs, a driver and a wheel, as NVML and PyTorch would show them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(gpus=1, driver="550.54.15", cuda=12040, wheel="13.2", error=None, usable=False, name="NVIDIA L4"):
        calls = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: gpus,
            "nvmlSystemGetDriverVersion": lambda: driver,
            "nvmlSystemGetCudaDriverVersion_v2": lambda: cuda,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: name,
        }
        for called, answer in calls.items():
            monkeypatch.setattr(pynvml, called, answer)

        def start():
            raise RuntimeError(error or TOO_OLD.format(cuda))

        monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus if usable else 0)
        monkeypatch.setattr(torch.cuda, "init", start)
        monkeypatch.setattr(torch.version, "cuda", wheel)

    return make


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize(
    ("told", "said", "unsaid"),
    [
        (
            {"driver": "550.54.15", "cuda": 12040, "wheel": "13.2"},
            ["NVIDIA L4 with driver 550.54.15 (CUDA 12.4)", "built for CUDA 13.2", "cu126, cu128 or cu129"],
            [],
        ),
        (
            {"driver": "470.82", "cuda": 11040, "wheel": "13.0", "name": "Tesla T4"},
            ["Tesla T4 with driver 470.82 (CUDA 11.4)", "built for CUDA 13.0", "a newer driver"],
            ["cu126"],
        ),
        ({"wheel": None}, ["built without CUDA", "PyTorch's wheels for CUDA", "docs/installation.md"], ["cu126"]),
        (
            {"cuda": 13020, "driver": "595.1", "error": "system not yet initialized"},
            ["driver 595.1 (CUDA 13.2)", "(system not yet initialized)"],
            ["cu126", "a newer driver"],
        ),
    ],
)
def test_a_driver_that_does_not_suit_the_wheel_is_named(machine, device, told, said, unsaid):
    machine(**told)
    with pytest.raises(ModelError, match=f"^device {device}: ") as caught:
        pick_device(device)
    message = str(caught.value)
    assert "\n" not in message
    assert "http" not in message
    for words in (*said, "choose --device cpu"):
        assert words in message
    for words in unsaid:
        assert words not in message
    assert pick_device("cpu") == torch.device("cpu")
    (check,) = doctor._gpus()
    assert check.status == "warning"
    assert check.detail == message.removeprefix(f"device {device}: ")


def test_a_driver_that_was_updated_under_a_running_kernel(machine, monkeypatch):
    machine()

    def mismatch():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)

    monkeypatch.setattr(pynvml, "nvmlInit", mismatch)
    with pytest.raises(ModelError, match=r"device auto: there is an NVIDIA GPU, whose driver does not answer \(.*cpu$"):
        pick_device("auto")


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles", "-1,0", " -1", ",0"])
def test_gpus_that_are_hidden_are_none(machine, monkeypatch, hidden):
    machine()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ModelError, match="device cuda: there is no GPU that PyTorch can use; choose --device cpu"):
        pick_device("cuda")


@pytest.mark.parametrize("named", ["7", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-GPU-8932f937/1/2"])
def test_a_variable_that_names_no_gpu_is_told(machine, monkeypatch, named):
    machine(cuda=13020, error="No CUDA GPUs are available")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    problem = unusable_gpu()
    assert (
        f"(No CUDA GPUs are available); see whether CUDA_VISIBLE_DEVICES, '{named}', names one that is there" in problem
    )
    assert problem.endswith("or choose --device cpu")


@pytest.mark.parametrize("code", ["NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_DRIVER_NOT_LOADED"])
def test_a_machine_without_a_driver_is_one_without_gpus(machine, monkeypatch, code):
    machine()

    def absent():
        raise pynvml.NVMLError(getattr(pynvml, code))

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    assert pick_device("auto") == torch.device("cpu")
    assert [check.status for check in doctor._gpus()] == ["ok"]


def test_a_driver_without_gpus_is_none(machine):
    machine(gpus=0)
    assert unusable_gpu() is None
    assert pick_device("auto") == torch.device("cpu")


def test_a_machine_without_nvidias_library(machine, monkeypatch):
    machine()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert pick_device("auto") == torch.device("cpu")


def test_gpus_that_work_are_taken_and_counted(machine):
    machine(gpus=2, usable=True)
    assert [pick_device(name) for name in ("auto", "cuda", "cuda:1")] == [
        torch.device("cuda"),
        torch.device("cuda"),
        torch.device("cuda:1"),
    ]
    with pytest.raises(ModelError, match=r"device cuda:2: GPUs are numbered from 0, and there are 2"):
        pick_device("cuda:2")


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_other_devices_must_be_there(monkeypatch, device):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with pytest.raises(ModelError, match=f"device {device}: there is none that PyTorch can use"):
        pick_device(device)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device(device, 0))
    assert pick_device(device) == torch.device(device)


def test_a_command_says_it_in_one_line(machine, monkeypatch, capsys, tiny_checkpoint, tmp_path):
    from zar_ray.commands.main import main

    machine()
    (tmp_path / "a.mp4").touch()
    assert main(["predict", str(tmp_path / "a.mp4"), "--labels", "a,b", "--checkpoint", str(tiny_checkpoint)]) != 0
    said = capsys.readouterr().err
    assert said.startswith("zar: device auto: there is an NVIDIA L4 with driver 550.54.15")
    assert said.count("\n") == 1


def test_on_the_cpu_cuda_is_never_touched(machine, monkeypatch, tiny_checkpoint, make_video):
    """A context of CUDA takes memory of a GPU. PyTorch's own optimisers ask whether it is there; nobody else does."""
    machine()

    def touch(*_, **__):
        raise AssertionError("CUDA was touched")

    for name in ("init", "_lazy_init", "device_count", "current_device", "synchronize", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, name, touch)
    monkeypatch.setattr(pynvml, "nvmlInit", touch)
    options = AdaptationOptions(
        checkpoint=tiny_checkpoint,
        device="cpu",
        method=("zero_shot", "zar", "tpt", "memo", "tent", "tda"),
        views=ViewConfig(frames=2, eval_frames=2, views_per_rate=1, crops=1),
    )
    model = load_model(options)
    adapter = VideoAdapter(model, prompts_of([("a", "b")], options), options.method, options)
    from zar_ray.video.plans import plan_views

    plan = plan_views("a.mp4", 31, 48, 80, options.views, model.preprocessing, seed=0)
    prediction = adapter(np.zeros((len(plan.frames), plan.height, plan.width, 3), np.uint8), plan)
    assert len(prediction.cases) == 6
    with full_precision(model.device):
        pass


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    from torch._inductor import cpp_builder

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    cpp_builder.cpp_compiler_search.cache_clear()
    torch._dynamo.reset()
    yield
    cpp_builder.cpp_compiler_search.cache_clear()
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiling_without_a_compiler_ends_at_the_start(no_compiler, tiny_checkpoint, capfd):
    options = AdaptationOptions(checkpoint=tiny_checkpoint, device="cpu", compile=True)
    model = load_model(options)
    with pytest.raises(ModelError, match=r"^--compile: PyTorch cannot compile for cpu here \(.*") as caught:
        VideoAdapter(model, prompts_of([("a", "b")], options), options.method, options)
    message = str(caught.value)
    assert "No working C++ compiler" in message
    assert "a C++ compiler, such as g++, and Python's headers on every node, or leave --compile out" in message
    assert "\n" not in message
    assert "TORCHDYNAMO" not in message


def test_what_was_compiled_before_does_not_hide_it(monkeypatch, tmp_path):
    """A compiler that is there tells nothing of headers, so something is compiled; and each time anew."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda x: compiled.append(cache()) or function(x))

    def cache():
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        return cache_dir()

    require_compiler(torch.device("cpu"))
    require_compiler(torch.device("cpu"))
    assert len({*compiled, cache()}) == 3


def test_on_a_gpu_other_things_are_needed(monkeypatch):
    def refuse(function, **_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable")

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(
        ModelError, match=r"for cuda here \(Failed to find C compiler\. Please .*a C compiler and Triton"
    ):
        require_compiler(torch.device("cuda"))
