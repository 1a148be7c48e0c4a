"""The decoding stage in this process; what Ray makes of it is tested on a real Ray."""

from __future__ import annotations

import gc
import weakref

import pytest

from zar_ray.adaptation.settings import Setting
from zar_ray.data.class_texts import prompts_of
from zar_ray.data.index import index_folder
from zar_ray.data.protocols import whole_split
from zar_ray.evaluation import decode_stage
from zar_ray.evaluation.spec import DECODED_SCHEMA, JobSpec, ModelCard
from zar_ray.evaluation.workload import Workload
from zar_ray.results.case import Case
from zar_ray.storage import Storage
from zar_ray.study.options import EvalConfig
from zar_ray.video.transforms import Preprocessing


@pytest.fixture
def job(video_folder, tmp_path):
    manifest = index_folder(video_folder)
    workload = Workload.of(manifest, [whole_split(manifest)])
    options = EvalConfig(views={"frames": 4, "eval_frames": 4})
    spec = JobSpec(
        options=options,
        model=ModelCard("tiny", "abc", Preprocessing(32), False),
        class_sets=workload.class_sets,
        settings=(Setting(options, prompts_of(workload.class_sets, options)),),
        multi_label=False,
        cases=(Case("zar-1", "zar"),),
        storage=Storage(str(tmp_path)),
        needs_views=True,
        threads=1,
    )
    return workload.table(), spec


def test_nothing_of_a_block_is_kept_once_it_is_gone(job, monkeypatch):
    """Arrow keeps the buffer of a memoryview for ever: a worker grew by all pixels that it ever decoded."""
    videos, spec = job
    frames = []
    decode = decode_stage.decode_video

    def remembered(*args, **kwargs):
        decoded = decode(*args, **kwargs)
        frames.append(weakref.ref(decoded.frames))
        return decoded

    monkeypatch.setattr(decode_stage, "decode_video", remembered)
    block = decode_stage.decode_block(videos.slice(0, 3), spec)
    assert block.schema.equals(DECODED_SCHEMA)
    assert all(block["error"].is_null().to_pylist())
    del block
    gc.collect()
    assert [kept() is None for kept in frames] == [True] * 3
