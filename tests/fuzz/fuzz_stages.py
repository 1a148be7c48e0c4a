"""Files sent through all that opens videos: the index probe, the decoding process whole and by windows, a job's stage.

What became of every file at every stage is counted by kind. `read`, `warned` and `refused` are as it should be; so are
`memory`, `hang` and `crash` where they are that file's own error within its limits. `unforeseen` is an error nobody
thought of, `dead` a decoding process that did not come back, `escaped` what would have ended a command, and `lost` a
file that nothing was said of.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mutated_videos import encode

from zar_ray.data.listing import list_folder
from zar_ray.data.manifest import Manifest
from zar_ray.data.probing import Failure, in_processes, probe_listing
from zar_ray.errors import DecoderClosedError, DecoderStartError, VideoError
from zar_ray.evaluation.spec import JobSpec, ModelViews
from zar_ray.evaluation.stages.decode import DecodeStage
from zar_ray.results.case import Case
from zar_ray.serving.options import LimitConfig
from zar_ray.storage import Storage
from zar_ray.video.limits import DecodeLimits
from zar_ray.video.options import ViewConfig
from zar_ray.video.sandbox import DecoderProcess
from zar_ray.video.sandbox_process import DecodeRequest
from zar_ray.video.transforms import Preprocessing
from zar_ray.video.windows import WindowCut

FINE = ("read", "warned", "refused", "memory", "hang", "crash")
STAGES = ("probe", "whole", "windows", "job")

_VIEWS = ViewConfig(frames=8, eval_frames=8)
_PIXELS = Preprocessing(32)
_CUT = WindowCut(0.4)
_KINDS = (
    ("hang", re.compile("took longer than|ended with exit code 70")),  # by which a job's stage gives up
    ("crash", re.compile("its decoder was killed|its decoder ended|crashes its decoder|stopped answering")),
    ("memory", re.compile("more memory than|out of memory")),
    ("unforeseen", re.compile(r"^\w+(Error|Exception): ")),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a file at a stage."""

    stage: str
    file: str
    kind: str
    said: str
    seconds: float


def send_through(
    folder: Path, timeout: float, workers: int, say: Callable[[str], None] = lambda _: None
) -> list[Outcome]:
    """Sends all files of a folder, which has class folders, through all stages.

    Args:
        folder: The files.
        timeout: Seconds that decoding one may take.
        workers: Processes at a time.
        say: Told of each stage that has ended.
    """
    manifest = probe_listing(list_folder(folder), workers=workers)
    files = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))
    found = {row.video_id: (row.error, None) for row in manifest.rows()}
    outcomes = [outcome_of("probe", file, *found.get(file, ("lost", None)), 0.0) for file in files]
    say(f"probe: {_counted(outcomes)}")
    # as commands decode, and as the service does, which alone cuts windows
    for stage, decode, limits in (
        ("whole", _decode_whole, DecodeLimits()),
        ("windows", _decode_windows, LimitConfig().decoding),
    ):
        ours = _through_processes(stage, folder, files, decode, limits, timeout, workers)
        say(f"{stage}: {_counted(ours)}")
        outcomes += ours
    ours = _through_job(manifest, timeout, workers)
    say(f"job: {_counted(ours)}")
    return outcomes + ours


def counts(outcomes: Sequence[Outcome]) -> dict[str, Counter[str]]:
    """How many outcomes of each kind there are at each stage."""
    return {stage: Counter(one.kind for one in outcomes if one.stage == stage) for stage in STAGES}


def _through_processes(
    stage: str,
    folder: Path,
    files: Sequence[str],
    decode: Callable[[DecoderProcess, Path, float], str | None],
    limits: DecodeLimits,
    timeout: float,
    workers: int,
) -> list[Outcome]:
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(workers) as threads:
        processes = [DecoderProcess(limits) for _ in range(workers)]
        good = _good_file(Path(name))

        def send(process: DecoderProcess, share: Sequence[str]) -> list[Outcome]:
            found = []
            for file in share:
                started = time.monotonic()
                try:
                    error, warning = None, decode(process, folder / file, timeout)
                except (DecoderStartError, DecoderClosedError) as caught:
                    error, warning = f"dead: {caught}", None
                except VideoError as caught:
                    error, warning = str(caught), None
                except Exception as caught:  # noqa: BLE001  what would end whatever decodes
                    error, warning = f"escaped: {caught!r}", None
                found.append(outcome_of(stage, file, error, warning, time.monotonic() - started))
            # whatever the files did, the next one is decoded
            decode(process, good, 60.0)
            return found

        try:
            shares = [files[number::workers] for number in range(workers)]
            return list(itertools.chain(*threads.map(send, processes, shares)))
        finally:
            for process in processes:
                process.close()


def _request(path: Path) -> DecodeRequest:
    return DecodeRequest(path.name, _VIEWS, 0, _PIXELS, needs_views=True)


def _decode_whole(process: DecoderProcess, path: Path, timeout: float) -> str | None:
    return process.decode(path, _request(path), timeout).warning


def _decode_windows(process: DecoderProcess, path: Path, timeout: float) -> str | None:
    *_, last = process.decode_windows(path, _request(path), _CUT, timeout)
    return last.warning


def _good_file(folder: Path) -> Path:
    return encode(folder / "good.mp4", "libx264", "yuv420p", {})


def _through_job(manifest: Manifest, timeout: float, workers: int) -> list[Outcome]:
    """The videos that could be opened, as an evaluation's decode stage does them; each in a process that may die."""
    rows = [
        {**row, "class_sets": [0], "right_ids": [[0]], "models": [0]}
        for row in manifest.table.to_pylist()
        if row["error"] is None
    ]
    with tempfile.TemporaryDirectory() as name:
        spec = JobSpec(
            models=(ModelViews("none", "fp32", _PIXELS, ((_VIEWS, 0),), needs_views=True),),
            labels=("none",),
            settings=("default",),
            class_sets=(tuple(manifest.class_names),),
            multi_label=False,
            cases=(Case("zero_shot", "zero_shot"),),
            storage=Storage(name),
            decoder="auto",
            decode_timeout=timeout,
        )
        answers = in_processes(rows, partial(decoded_by_stage, spec), workers, timeout=2 * timeout + 30)
    outcomes = []
    for row, answer in zip(rows, answers, strict=True):
        error, warning = (answer.message, None) if isinstance(answer, Failure) else answer
        outcomes.append(outcome_of("job", row["video_id"], error, warning, 0.0))
    return outcomes


def decoded_by_stage(spec: JobSpec, row: dict) -> tuple[str | None, str | None]:
    """What the stage says of a video: its error and its warning."""
    video = DecodeStage(spec).decode(row)
    if video.get("error") is None and not video["inputs"]:
        return "lost", None
    return video.get("error"), video.get("warning")


def outcome_of(stage: str, file: str, error: str | None, warning: str | None, seconds: float) -> Outcome:
    """What an error or a warning of a file means."""
    if error is None:
        return Outcome(stage, file, "read" if warning is None else "warned", warning or "", seconds)
    kind = error.partition(":")[0]
    if kind not in ("lost", "dead", "escaped"):
        kind = next((name for name, pattern in _KINDS if pattern.search(error)), "refused")
        if "\n" in error:
            kind = "escaped"
    return Outcome(stage, file, kind, error, seconds)


def _counted(outcomes: Sequence[Outcome]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in outcomes).most_common())
