"""Looking after a folder of image features: what it holds, what is evicted, and what a run's driver does for it.

What is evicted is a whole pack, the longest unused first: the features of videos that were stored, or put together,
at about the same time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pyarrow as pa

from zar_ray.errors import ConfigError, RunError
from zar_ray.evaluation.feature_store import SPACE, FeatureStore
from zar_ray.evaluation.packs import PackFile
from zar_ray.evaluation.spec import FEATURE_PACKS
from zar_ray.storage import Storage
from zar_ray.video.files import VideoFile

_SECONDS_BETWEEN_LOOKS = 60.0  # at the bound, in mid-run
_NOTED_FOR = 3600.0  # seconds that a pack counts as used without being noted again
_MERGED_AT_END = 2**28  # bytes of small packs that a run's driver puts together


@dataclass(frozen=True, eq=False)
class Space:
    """A space of a folder of features.

    Attributes:
        store: Its features.
        packs: Its packs, the longest unused first.
        videos: Different videos with features.
        damaged: A line on each pack that cannot be used.
    """

    store: FeatureStore
    packs: tuple[PackFile, ...]
    videos: int
    damaged: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its packs."""
        return sum(pack.size for pack in self.packs)


@dataclass(frozen=True)
class Pruned:
    """What was deleted, or would be.

    Attributes:
        packs: How many packs.
        entries: Entries in them.
        bytes: Their bytes.
        left: Bytes of packs that stay.
        merged: By how many packs there are fewer since small ones were put together.
    """

    packs: int
    entries: int
    bytes: int
    left: int
    merged: int = 0


def stores_in(location: str) -> list[FeatureStore]:
    """The stores of a folder, by the descriptions in it.

    Raises:
        RunError: There is none.
    """
    storage, stores = Storage(location), []
    for name in storage.folders():
        if storage.exists(f"{name}/{SPACE}"):
            try:
                space = json.loads(storage.read(f"{name}/{SPACE}"))
                store = FeatureStore(storage, space, space.pop("called"))
            except (ValueError, TypeError, AttributeError, KeyError):
                raise RunError(f"{storage.path(name)}/{SPACE}: is damaged; delete it, the next run writes it") from None
            if store.key == name:
                stores.append(store)
    if not stores:
        raise RunError(f"{storage.path()}: no image features here; a run with --features {location} stores them")
    return stores


def look(store: FeatureStore) -> Space:
    """What a store holds now."""
    index, damaged = store.packs.index()
    videos = np.unique(index.rows["video"][index.rows["length"] > 0], axis=0)
    return Space(store, tuple(store.packs.list()), len(videos), tuple(damaged))


def prune(
    stores: Sequence[FeatureStore],
    max_bytes: int | None = None,
    older_than: float | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Deletes packs, of all stores the longest unused first.

    Args:
        stores: The stores of a folder.
        max_bytes: Bytes that all packs may have together.
        older_than: Seconds after which a pack that nobody read is deleted.
        dry_run: Only say what would be deleted.

    Raises:
        RunError: A pack cannot be deleted.
    """
    listed = [(pack, store) for store in stores for pack in store.packs.list()]
    left, now = sum(pack.size for pack, _ in listed), time.time()
    out: list[tuple[PackFile, FeatureStore]] = []
    for pack, store in sorted(listed, key=lambda one: (one[0].used, one[0].name)):
        if (max_bytes is not None and left > max_bytes) or (older_than is not None and now - pack.used > older_than):
            out.append((pack, store))
            left -= pack.size
    if not dry_run:
        for store in stores:
            store.packs.delete([pack.name for pack, of in out if of is store])
    packs = [pack for pack, _ in out]
    return Pruned(len(packs), sum(pack.entries for pack in packs), sum(pack.size for pack in packs), left)


class FeatureKeeping:
    """What a run's driver does for the stores of its models, as a context manager.

    Before the work it shows whether they can be written, and pins what is stored. In mid-run it notes what is read, and
    keeps the folder within its bound; at the end small packs are put together.

    Args:
        stores: The stores of the run's models, None where features are not kept.
        max_bytes: The folder's bound.
        say: Shows a line.

    Raises:
        ConfigError: There is a bound and no store.
        RunError: A store cannot be written or listed.
    """

    def __init__(
        self, stores: Sequence[FeatureStore | None], max_bytes: int | None, say: Callable[[str], object]
    ) -> None:
        self._stores = {store.key: store for store in stores if store is not None}
        self._every = bool(stores) and None not in stores
        self._max_bytes = max_bytes
        self._say = say
        self._noted: dict[str, float] = {}
        self._looked = time.monotonic()
        if max_bytes is not None and not self._stores:
            raise ConfigError("--features-max-bytes: is the bound of a folder that --features names; name it, too")
        for store in stores:
            if store is not None:
                store.prepare()
                for line in store.pin():
                    say(f"{line}; what it held is computed anew")

    def __enter__(self) -> FeatureKeeping:
        self._beside = ThreadPoolExecutor(4)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._beside.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._try(lambda: [store.merge(_MERGED_AT_END) for store in self._stores.values()])
            self._bound()

    def unstored(self, videos: pa.Table) -> pa.Table:
        """Those of some manifest rows whose features must be computed, as far as their files' names tell."""
        if not self._every:
            return videos
        places = zip(videos["path"].to_pylist(), videos["member"].to_pylist(), strict=True)
        files = [VideoFile(path, member) for path, member in places]
        has = [store.has(files) for store in self._stores.values()]
        return videos.filter(pa.array(~np.logical_and.reduce(has)))

    def see(self, status: pa.Table) -> None:
        """Notes which packs were read for some rows of `STATUS_SCHEMA`."""
        if not self._stores:
            return
        now = time.monotonic()
        for pack in set(status[FEATURE_PACKS.name].combine_chunks().flatten().to_pylist()):
            if now - self._noted.get(pack, -_NOTED_FOR) >= _NOTED_FOR:
                self._noted[pack] = now
                key, _, name = pack.partition("/")
                self._beside.submit(self._try, lambda key=key, name=name: self._stores[key].packs.touch(name))
        if now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._beside.submit(self._bound)

    def _bound(self) -> None:
        if self._stores and self._max_bytes is not None:
            location = next(iter(self._stores.values())).storage.location
            self._try(lambda: prune(stores_in(location), self._max_bytes))

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except RunError as error:
            # A store that is not looked after costs room and time later, not the run.
            self._say(f"image features: {error}")
