"""The driver's side of a training under way: what its processes say is shown and logged."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from ray.util.queue import Empty
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from zar_ray.errors import TrackingError
from zar_ray.results.statistics import share_estimate
from zar_ray.storage import Storage
from zar_ray.tracking import TrainingTracker
from zar_ray.training.messages import Progress, Validated
from zar_ray.training.options import TrainConfig
from zar_ray.training.outputs import TrainResult
from zar_ray.training.worker import TrainingJob

# A log that someone reads afterwards wants a line often enough to see life, seldom enough to be read.
_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def tracked(
    job: TrainingJob, folder: Storage, console: Console, parent: str | None
) -> Iterator[TrainingTracker | None]:
    """The training's run in MLflow; a store that cannot be reached costs a line, not the training."""
    config, tracker = job.config, None
    if config.mlflow:
        facts = {"dataset": str(config.dataset), "videos": len(job.videos), "classes": len(job.prompts.names)}
        facts["model"] = config.model if config.checkpoint is None else config.checkpoint.name
        facts |= {"steps": job.schedule.steps, "checkpoint": str(config.output)}
        try:
            tracker = TrainingTracker.start(folder, config.mlflow_uri, config.model_dump(mode="json"), facts, parent)
        except TrackingError as error:
            console.print(f"not logged to MLflow: {error}", markup=False)
    try:
        yield tracker
    except BaseException as error:
        if tracker is not None:
            with contextlib.suppress(TrackingError):  # what stopped the training is the one thing to be said
                tracker.fail(" ".join(str(error).split()) or type(error).__name__)
        raise


def log_end(tracker: TrainingTracker | None, trained: TrainResult, config: TrainConfig, console: Console) -> str | None:
    """Sends what the training ended with; returns its run in MLflow, where there is one."""
    if tracker is None:
        return None
    # A model is hundreds of megabytes, and lies where its tag says: it is sent where it is to be registered.
    registered = None if config.register_as is None else (config.register_as, trained.checkpoint)
    try:
        receipt = tracker.finish({"train/loss": trained.loss, "train/accuracy": trained.accuracy}, registered)
    except TrackingError as error:
        console.print(f"not logged to MLflow: {error}", markup=False)
        return None
    console.print(f"MLflow: run {receipt.run_id} of experiment {receipt.experiment} at {receipt.uri}")
    return receipt.run_id


@contextlib.contextmanager
def shown(job: TrainingJob, tracker: TrainingTracker | None, console: Console) -> Iterator[list[str]]:
    """Shows and logs what the processes say, in a thread, until the training ends; yields what exceptions said."""
    over = threading.Event()
    raised: list[str] = []
    bar = _TrainingBar(console, job.schedule.steps, job.config.batch_size)

    def listen() -> None:
        while True:
            ended = over.is_set()
            try:
                message = job.progress.get(timeout=0 if ended else 1, block=not ended)
                if isinstance(message, str):
                    raised.append(message)
                else:
                    _take(message, bar, tracker)
            except Empty:
                if ended:
                    return
            except TrackingError as error:
                console.print(f"not logged to MLflow: {error}", markup=False)

    thread = threading.Thread(target=listen, daemon=True)
    with bar:
        thread.start()
        try:
            yield raised
        finally:
            over.set()
            thread.join()
            job.progress.shutdown()


def _take(message: Progress | Validated, bar: _TrainingBar, tracker: TrainingTracker | None) -> None:
    if isinstance(message, Validated):
        top1 = share_estimate(message.correct, message.videos)
        bar.console.print(
            f"after {message.epoch:.1f} epochs: top-1 {top1.value:.1%} ({top1.low:.1%} to {top1.high:.1%})"
            f" of {message.videos} validation videos{f', {message.failed} failed' if message.failed else ''}",
            markup=False,
        )
        metrics = {"validation/top1": top1.value, "validation/top1_low": top1.low, "validation/top1_high": top1.high}
    else:
        bar.show(message)
        measured = {name: value for name, value in vars(message).items() if name != "step"}
        metrics = {f"train/{name}": value for name, value in measured.items() if value is not None}
    if tracker is not None:
        tracker.log(message.step, metrics)


class _TrainingBar(Bar):
    """Shows a training: a live bar on a terminal, a line now and then in a log."""

    def __init__(self, console: Console, steps: int, batch_size: int) -> None:
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "steps")
        timing = (TimeElapsedColumn(), TimeRemainingColumn())
        super().__init__(*columns, *timing, console=console, disable=not console.is_terminal)
        self._steps = steps
        self._batch_size = batch_size
        self._next_line = 0.0  # when it is due
        self._task = self.add_task("starting workers, first step", start=False, total=steps)

    def show(self, progress: Progress) -> None:
        """Shows how far training is."""
        self.start_task(self._task)
        facts = f"loss {progress.loss:.3f}  {progress.accuracy:.1%} right"
        self.update(self._task, completed=progress.step, description=facts)
        now = time.monotonic()
        if self.console.is_terminal or (now < self._next_line and progress.step < self._steps):
            return
        self._next_line = now + _SECONDS_BETWEEN_LINES
        left = (self._steps - progress.step) * self._batch_size / progress.videos_per_second
        waiting = f"  {progress.data_wait_share:.0%} waiting for pixels" if progress.data_wait_share >= 0.1 else ""
        self.console.print(
            f"step {progress.step}/{self._steps}  {facts}  lr {progress.learning_rate:.1e}"
            f"  {progress.videos_per_second:.0f} videos/s{waiting}  about {left:.0f} s left"
        )
