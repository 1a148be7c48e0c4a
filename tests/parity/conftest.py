"""Reference fixtures in their published format, made anew from the project's own reference numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zar_ray.models.architecture import build_clip
from zar_ray.parity import run

GOLDEN = Path(__file__).parent.parent / "golden"
SYSTEMS = {"zar_step": "from_frames", "zar_step_pixels": "from_pixels"}


@pytest.fixture(scope="session")
def golden_shapes():
    facts = json.loads((GOLDEN / "zar_steps.json").read_text())
    return {name: list(tensor.shape) for name, tensor in build_clip(facts["architecture"]).state_dict().items()}


@pytest.fixture
def make_fixture(tmp_path, golden_shapes) -> Callable[[str], Path]:
    """Writes the fixture of one of ZAR's systems and returns its folder."""

    def make(system: str) -> Path:
        facts = json.loads((GOLDEN / "zar_steps.json").read_text())
        case = SYSTEMS[system]
        fractions = facts["cases"][case]["fractions"]
        with np.load(GOLDEN / "zar_steps.npz") as file:
            golden = dict(file)
        ids = np.zeros((len(facts["class_names"]), 77), dtype=np.int64)
        ids[:, : golden["token_ids"].shape[1]] = golden["token_ids"]
        arrays = {
            "token_ids": ids,
            "ctx_init": golden["context"],
            "text_features_init": golden["text"],
            "view_features": golden[f"{case}/views"],
            "view_logits": golden[f"{case}/view_logits"],
            "view_entropies": golden[f"{case}/entropies"],
            "eval_logits_init": golden[f"{case}/logits"][None],
        }
        for fraction in fractions:
            tuned = f"{case}/{fraction}"
            arrays[f"p{fraction}/selected"] = golden[f"{tuned}/selected"].astype(np.int64)
            arrays[f"p{fraction}/losses"] = golden[f"{tuned}/losses"]
            for step in range(facts["steps"]):
                number = step + 1
                arrays[f"p{fraction}/grad_step{number}"] = golden[f"{tuned}/gradients"][step]
                arrays[f"p{fraction}/ctx_step{number}"] = golden[f"{tuned}/contexts"][step]
                arrays[f"p{fraction}/text_features_step{number}"] = golden[f"{tuned}/texts"][step]
                arrays[f"p{fraction}/view_logits_step{number}"] = golden[f"{tuned}/view_logits"][step]
                arrays[f"p{fraction}/eval_logits_step{number}"] = golden[f"{tuned}/logits"][step][None]
        description = {
            "system": system,
            "seed": facts["seed"],
            "config": {
                "ctx_init": facts["context"],
                "lr": facts["lr"],
                "optimizer": "AdamW: betas (0.9,0.999), eps 1e-8, weight_decay 0.01",
                "selection_fractions": fractions,
                "n_views": len(arrays["view_features"]),
                "steps": facts["steps"],
            },
            "class_names": facts["class_names"],
            "checkpoint": {"top_level_keys": None, "base_clip": golden_shapes},
            "digest": {"base_clip": facts["digests"]["weights"], "input": facts["digests"][case]},
            "input_shape": facts["cases"][case]["input_shape"],
            "arrays": {name: {"what": "…"} for name in arrays},
        }
        return write_fixture(tmp_path / "fixtures" / system, description, arrays)

    return make


def write_fixture(folder: Path, description: dict, arrays: dict) -> Path:
    folder.mkdir(parents=True)
    (folder / "fixture.json").write_text(json.dumps(description))
    np.savez(folder / "arrays.npz", **arrays)
    return folder


@pytest.fixture(name="write_fixture")
def _write_fixture() -> Callable[[Path, dict, dict], Path]:
    """`write_fixture`, for test modules."""
    return write_fixture


@pytest.fixture
def change() -> Callable[..., None]:
    """Edits a fixture: `change(folder, describe=…, arrays=…)` with functions that alter what they are given."""

    def edit(folder: Path, describe=None, arrays=None) -> None:
        if describe:
            content = json.loads((folder / "fixture.json").read_text())
            describe(content)
            (folder / "fixture.json").write_text(json.dumps(content))
        if arrays:
            with np.load(folder / "arrays.npz") as file:
                values = dict(file)
            arrays(values)
            np.savez(folder / "arrays.npz", **values)

    return edit


@pytest.fixture(scope="module")
def _evidence() -> dict:
    return {}


@pytest.fixture
def made_once(_evidence, monkeypatch) -> None:
    """What this code makes of each system is made once a module, for tests that change references and no input."""

    def once(system, make):
        def remembered(fixture):
            if system not in _evidence:
                _evidence[system] = make(fixture)
            return _evidence[system]

        return remembered

    for system, make in run.SYSTEMS.items():
        monkeypatch.setitem(run.SYSTEMS, system, once(system, make))


@pytest.fixture
def preprocess_fixture(tmp_path, make_video) -> Path:
    """A fixture of two videos, its reference numbers by decord and torchvision themselves."""
    decord = pytest.importorskip("decord", reason="the reference decoder has no wheel here")
    from hashlib import sha256

    import torch
    from PIL import Image
    from torchvision import transforms

    size, indices = 32, [0, 3, 3, 9]
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    arrays: dict[str, np.ndarray] = {"frame_indices": np.array(indices), "sample/N7_T3": np.array([1, 3, 5])}
    clips = {}
    for name, height, width in (("wide", 48, 96), ("tall", 106, 64)):
        path = make_video(tmp_path / "data" / "videos" / f"{name}.mp4", frames=12, width=width, height=height)
        reader = decord.VideoReader(str(path), num_threads=1)
        raw = reader.get_batch(indices).asnumpy()
        crop = transforms.Compose(
            [transforms.Resize(size, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size)]
        )
        crops = [crop(Image.fromarray(frame)) for frame in raw]
        normalise = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
        pixels = torch.stack([normalise(picture) for picture in crops])
        u8 = np.stack([np.asarray(picture) for picture in crops])
        channels_first = torch.from_numpy(raw).permute(0, 3, 1, 2).float()
        grid = torch.nn.functional.adaptive_avg_pool2d
        arrays |= {
            f"{name}/frame_mean": channels_first.mean(dim=(2, 3)).numpy(),
            f"{name}/frame_grid": grid(channels_first, 6).numpy(),
            f"{name}/clip_mean": pixels.mean(dim=(2, 3)).numpy(),
            f"{name}/clip_std": pixels.std(dim=(2, 3)).numpy(),
            f"{name}/clip_grid": grid(pixels, 4).numpy(),
            f"{name}/clip_corner": pixels[:, :, :5, :5].numpy(),
            f"{name}/crop_centre_u8": u8[:, 13:19, 13:19].astype(np.int64),
        }
        long_side = size * max(height, width) // min(height, width)
        clips[name] = {
            "source": "made for this test",
            "file": f"videos/{name}.mp4",
            "file_sha256": sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
            "n_frames_decord": len(reader),
            "avg_fps": reader.get_avg_fps(),
            "frames_shape": list(raw.shape),
            "frames_sha256": sha256(raw.tobytes()).hexdigest(),
            "per_frame_sha256": [sha256(frame.tobytes()).hexdigest() for frame in raw],
            "resized_WxH": [long_side, size] if width > height else [size, long_side],
            "crop32_u8_sha256": [sha256(picture.tobytes()).hexdigest() for picture in u8],
        }
        del reader
    description = {
        "system": "preprocess",
        "seed": 1,
        "clips": clips,
        "config": {"frame_indices": indices, "n_px": size, "mean": mean, "std": std},
        "arrays": {name: {"what": "…"} for name in arrays},
    }
    return write_fixture(tmp_path / "data" / "golden" / "preprocess", description, arrays)
