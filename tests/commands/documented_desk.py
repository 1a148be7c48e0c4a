"""What the commands of README and docs/ name, in miniature: videos, lists, weights, what a network has, runs.

A folder holds all of it; `on_little_data` has commands find it there, and `prepared` puts it in the place of what they
name. Run as a script, it gives the statuses of some commands as JSON, for those that need an installed package.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import miniatures
import open_clip
import pytest
import torch
from finished_runs import write_finished_run
from published_files import published
from stages_here import without_ray
from text_kits import tiny_model

from zar_ray.commands.main import main
from zar_ray.data.classes import class_list
from zar_ray.data.manifest import Manifest, VideoRow, read_manifest, write_manifest
from zar_ray.evaluation import sampling
from zar_ray.evaluation.trial import Trial
from zar_ray.models.architecture import build_clip
from zar_ray.models.checkpoints import save_checkpoint
from zar_ray.models.importing import plan_import
from zar_ray.models.learned_context import LearnedContext, save_context
from zar_ray.models.loading import load_model
from zar_ray.models.options import ModelOptions
from zar_ray.models.systems.registry import registered
from zar_ray.models.text import PromptedClasses
from zar_ray.study import forecasts
from zar_ray.video.transforms import Preprocessing

ROOT = Path(__file__).parents[2]

# Stands for ViT-B-16-quickgelu, and so for what is built on it; heads as OpenAI's layout has them.
MINI: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 2},
}
WORDS = "a photo of a"
SHOTS = 16
OF_NETWORK = {"timm/vit_base_patch16_clip_224.openai": None, "timm/ViT-B-16-SigLIP2": "SigLIP2"}
OF_NETWORK |= {"timm/PE-Core-B-16": "PE-Core"}
"""Repositories of the hub that commands name, with the kind of `TINY_MODELS`; None is `MINI`."""

PUBLISHED = {
    "vifi_clip_10_epochs_k400_full_finetuned.pth": ("vificlip", {}),
    "k400_vificlip.pth": ("vificlip", {}),
    "model_best.pt": ("actionclip", {"fusion": {"head": "Transf", "layers": 1}}),
    "openvclip.pth": ("openvclip", {"neighbour_frames": {"frames": 16}}),
    "swa_2_22.pth": ("openvclip", {"neighbour_frames": {"frames": 8}}),
    "HMDB_best.pth.tar": (
        "a5",
        {"learned_texts": {"prefix": 4, "postfix": 4}, "frame_layers": {"layers": 1, "frames": 16, "heads": 4}},
    ),
}
"""Files of published systems, with the system and what it adds to `MINI`."""

IMPORTED = {
    "model_best.pt": ("model_best.zar.safetensors", "actionclip.safetensors"),
    "swa_2_22.pth": ("swa.safetensors", "openvclip.safetensors"),
}
PLAIN = (
    "vifi",
    "vificlip",
    "clip",
    "k400-clip",
    "pretrained",
    "tuned",
    "trained",
    "epoch8",
    "epoch9",
    "epoch10",
    "model",
)
VIDEOS = ("clip1", "clip2", "egg", "ride", "jump", "dive")


LITTLE = ("--limit", "2", "--views.views-per-rate", "2", "--views.crops", "1", "--no-mlflow")
"""Makes an evaluation shorter."""


def write(path: Path, *lines: str) -> None:
    """Writes lines into a file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make_desk(desk: Path, videos: Path, make_video: Callable[..., Path]) -> None:
    """Fills a folder with all that commands name but what is at a network or a store, and `data` stands for /data."""
    data = desk / "data"
    (desk / "conf").symlink_to(ROOT / "conf")
    for place in (data / "my_videos", data / "mine", desk / "clips", desk / "more"):
        shutil.copytree(videos, place)
    for number, name in enumerate(VIDEOS):
        make_video(desk / f"{name}.mp4", seed=number)
    classes = sorted(one.name for one in videos.iterdir())
    write(data / "list.csv", "path,label", *(f"my_videos/{one}/0.mp4,{one}" for one in classes))
    write(desk / "classes.txt", *classes)
    _write_shards(data / "shards", videos, classes)
    _write_benchmarks(desk, lambda path, number: make_video(path, frames=6, seed=number))
    write(desk / "own.yaml", "title: Steps", "grid: {zar.steps: [1, 2]}")
    write(desk / "keep.yaml", "title: Share of views", "grid: {view_mean.keep: [0.2, 0.5, 0.8]}")
    with (desk / "descriptions.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(name, f"somebody does {name}") for name in class_list("kinetics400")]
        csv.writer(file).writerows([("class", "text"), *rows])
    _write_models(desk)
    own = {"dataset": str(data / "my_videos"), "checkpoint": str(desk / "clip.safetensors")}
    for draw, name in enumerate(("NAME", "A", "B", "C")):
        write_finished_run(desk / "runs" / name, draw=draw, **own)
    cells = {
        (("setting", f"lr {lr}"), ("seed", str(seed))): {"zar": {"lr": lr}, "seed": seed}
        for lr in (0.01, 0.02)
        for seed in (0, 1)
    }
    write_finished_run(desk / "runs" / "STUDY", cells=cells, **own)
    write(desk / "runs" / "NAME" / "config.yaml", *(f"{name}: {value}" for name, value in own.items()))


def make_home(desk: Path) -> None:
    """Gives the desk a `home` that knows benchmarks, with as many training videos a class as are drawn."""
    home, data = desk / "home", desk / "data"
    hmdb51 = ["--root", "data/hmdb51_org", "--annotations", "data/testTrainMulti_7030_splits"]
    for words in (
        ["hmdb51", *hmdb51, "--available-only"],
        ["k400", "--root", "data/k400"],
        ["k600", "--root", "data/k600"],
        ["data/my_videos", "--output", "data/my_videos.parquet"],
        ["--list", "val1.txt", "--labels", "names.txt", "--root", "VIDEOS", "--name", "mine"],
    ):
        assert main(["data", "index", *words]) == 0
    for name in ("train", "mine"):
        shutil.copy(data / "my_videos.parquet", data / f"{name}.parquet")
    for benchmark, splits in (("hmdb51", ("train1", "train2", "train3")), ("k400", ("train",))):
        _add_training_videos(home / "datasets" / benchmark / "manifest.parquet", splits)
    shutil.copy(home / "datasets" / "k400" / "manifest.parquet", data / "k400")
    shutil.copy(home / "datasets" / "k600" / "manifest.parquet", data / "k600.parquet")
    assert main(["data", "shots", "hmdb51", "--shots", str(SHOTS), "--seed", "1"]) == 0
    # The demo's own videos and model take minutes to make.
    manifest = read_manifest(data / "my_videos.parquet")
    rows = [replace(row, split="test") for row in manifest.rows()]
    place = home / "demo" / "videos" / "manifest.parquet"
    write_manifest(Manifest.of(rows, manifest.class_names, manifest.root, "demo"), place)
    shutil.copy(desk / "clip.safetensors", home / "demo" / "tiny-clip.safetensors")
    features = ["--features", "data/features", "--output", str(desk / "features"), *LITTLE]
    assert main(["eval", "--dataset", "data/my_videos.parquet", *features]) == 0


def _write_benchmarks(desk: Path, put: miniatures.Put) -> None:
    data = desk / "data"
    present = miniatures.hmdb51(data, put)
    miniatures.k400(data / "k400", put)
    shutil.copytree(data / "hmdb51_org", desk / "VIDEOS")
    names = class_list("hmdb51")
    write(desk / "names.txt", *names)
    # Of split 1, as `miniatures.hmdb51` divides it.
    for number, name in enumerate(("train1.txt", "val1.txt")):
        folders = {one.replace(" ", "_"): names.index(one) for one in present}
        write(desk / name, *(f"{one}/film_{one}_u_nm_np1_fr_med_{number}.avi {at}" for one, at in folders.items()))
    everywhere, *alone = miniatures.k600(data / "k600", put)
    for number, one in enumerate(alone, start=1):
        names = class_list(f"kinetics600_zero_shot_{number}")
        found = [path for name in (everywhere, one) for path in sorted(data.glob(f"k600/*/{name}/*.mp4"))]
        lines = [f"{path.relative_to(data / 'k600')} {names.index(path.parent.name)}" for path in found]
        write(desk / f"ZS_split{number}.txt", *lines)


def _write_shards(folder: Path, videos: Path, classes: Sequence[str]) -> None:
    """Tar files as WebDataset writes them, with a class's number beside each video."""
    folder.mkdir(parents=True)
    for number, name in enumerate(classes):
        with tarfile.open(folder / f"{number:06}.tar", "w") as archive:
            for place, video in enumerate(sorted((videos / name).iterdir())[:2]):
                for kind, content in (("mp4", video.read_bytes()), ("cls", b"%d" % number)):
                    member = tarfile.TarInfo(f"{place:04}.{kind}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def _write_models(desk: Path) -> None:
    first, *others = (desk / f"{name}.safetensors" for name in PLAIN)
    _save(first, {})
    for other in others:
        other.hardlink_to(first)
    _save(desk / "vita.safetensors", {"view_prompts": {"frames": 8, "context": None}, "system": "vitaclip"})
    for name, (system, additions) in PUBLISHED.items():
        torch.save(published(system, build_clip({**MINI, **additions})), desk / name)
    for name, targets in IMPORTED.items():
        for target in targets:
            plan_import(desk / name).write(desk / target)
    for repository, kind in OF_NETWORK.items():
        folder = desk / "hub" / f"models--{repository.replace('/', '--')}"
        write(folder / "refs" / "main")
        (folder / "refs" / "main").write_text("0" * 40)
        snapshot = folder / "snapshots" / ("0" * 40)
        if kind is None:
            _save(snapshot / "open_clip_model.safetensors", {})
        else:
            tiny_model(kind, snapshot)
    tiny_model("MobileCLIP", desk / "models" / "mine")
    with network_here(desk):
        model = load_model(ModelOptions(device="cpu"))
    vectors = PromptedClasses(model, ["one", "two"], WORDS).initial_context
    save_context(
        LearnedContext(vectors, WORDS, model.name, model.fingerprint),
        desk / f"context-{SHOTS}shot-seed1.safetensors",
    )


def _save(path: Path, additions: Mapping[str, Any]) -> None:
    torch.manual_seed(3)
    architecture = {**MINI, **additions}
    save_checkpoint(build_clip(architecture), architecture, Preprocessing(input_size=32), path)


def _add_training_videos(place: Path, splits: tuple[str, ...]) -> None:
    """Adds rows of training videos to a benchmark's manifest, which are all of its few files."""
    manifest = read_manifest(place)
    files = [row for row in manifest.rows() if row.error is None]
    rows = [
        replace(
            files[number % len(files)],
            video_id=f"more/{name}_{number}.mp4",
            label_id=label,
            class_name=name,
            split=splits[0],
            splits=splits if len(splits) > 1 else None,
            group=None,
        )
        for label, name in enumerate(manifest.class_names)
        for number in range(SHOTS)
    ]
    every: list[VideoRow] = [*manifest.rows(), *rows]
    write_manifest(Manifest.of(every, manifest.class_names, manifest.root, manifest.name), place)


@contextmanager
def network_here(desk: Path, empty: bool = False) -> Iterator[None]:
    """Puts the desk's few small models in the place of the hub's, or nothing; no connection is tried."""
    siglip2 = desk / "hub" / "models--timm--ViT-B-16-SigLIP2" / "snapshots" / ("0" * 40)
    config = json.loads((siglip2 / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(desk / ("nothing" if empty else "hub")))
        patch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-16-quickgelu", MINI)
        patch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-16-SigLIP2", config)
        yield


@contextmanager
def package_here(folder: Path) -> Iterator[None]:
    """Has this process know the models of packages that are installed in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        registered.cache_clear()
        try:
            yield
        finally:
            registered.cache_clear()
            sys.modules.pop("zar_framewise", None)


def write_framewise(desk: Path) -> None:
    """Writes weights of the page's model, which is known here, as zar-ray has them and as its own training would."""
    _save(desk / "framewise.safetensors", {"frame_weights": {"inner": 8}, "system": "framewise"})
    state = build_clip({**MINI, "frame_weights": {"inner": 8}}).state_dict()
    torch.save({name.replace("fusion.", "frame_attention."): one for name, one in state.items()}, desk / "theirs.pth")


@contextmanager
def on_little_data(desk: Path, home: Path, empty_hub: bool = False) -> Iterator[None]:
    """Has commands run in this process, on what the desk has."""
    with network_here(desk, empty_hub), without_ray(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZAR_HOME", str(home))
        # What a dry run and a plan measure beside the stages themselves takes processes and seconds.
        patch.setattr(sampling, "_start_of", lambda module: 0.5)
        patch.setattr(sampling, "usable_cpus", lambda: 1)
        patch.setattr(forecasts, "run_trial", lambda *asked: Trial(asked[3], 2.0, 3.0))
        yield


def prepared(words: Sequence[str], desk: Path, home: Path, runs: Path, known: Mapping[str, str]) -> list[str]:
    """The words of a command with what is there in the place of what they name, and with less to do.

    Args:
        words: Those after `zar`.
        desk: The folder of `make_desk`.
        home: What stands for ZAR_HOME.
        runs: Where an evaluation writes that does not say.
        known: What stands for further words, or parts of them.
    """
    named = {"MANIFEST": f"{desk}/data/my_videos.parquet", "ROOT/NAME": "runs/C", **known}
    if words[:3] == ["data", "index", "NAME"]:
        named |= {"NAME": "k400", "VIDEOS": f"{desk}/data/k400", "FOLDER": f"{desk}/data/k400/annotations"}
    elif words[:3] == ["data", "index", "k600"]:
        named |= {"VIDEOS": f"{desk}/data/k600"}
    made = [named.get(word, word) for word in words]
    made = [
        re.sub(r"^/(?:data|shared)/", f"{desk}/data/", word).replace("~/.cache/zar-ray", str(home)) for word in made
    ]
    asked = set(made)
    if made[0] in ("eval", "ablate") and not asked & {"--dry-run", "--help-all"}:
        made += [*LITTLE, *(() if "--output" in asked else ("--output", str(runs)))]
    elif made[0] == "train":
        processes = int(made[made.index("--num-workers") + 1]) if "--num-workers" in asked else 1
        made += ["--steps", "1", "--batch-size", str(2 * processes), "--micro-batch", "2", "--no-mlflow"]
    elif made[0] == "plan":
        made += ["--sample", "2"]
    return made


def bench(desk: Path, folder: Path, words: Sequence[str]) -> Path:
    """A working folder that has what the desk has, but for the files that a command is to write."""
    folder.mkdir()
    written = Path("nothing")
    if words[0] in ("train", "checkpoint") and "--output" in words:
        written = Path(words[words.index("--output") + 1])
    elif list(words[:2]) == ["checkpoint", "import"]:
        written = Path(words[2]).with_suffix(".zar.safetensors")
    for one in desk.iterdir():
        of_draw = one.suffix == written.suffix and one.name.startswith(f"{written.stem}-")
        if one.name != written.name and not of_draw:
            (folder / one.name).symlink_to(one)
    return folder


if __name__ == "__main__":
    place, of_home, commands = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    statuses = []
    with on_little_data(place, of_home):
        for each in commands:
            try:
                statuses.append(main(each))
            except SystemExit as end:  # of a help
                statuses.append(end.code)
    print(json.dumps(statuses))
