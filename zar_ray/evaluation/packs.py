"""Files that hold many entries each, which processes add, read by range, merge and delete without locks.

FOLDER/
DIGEST-COUNT-TIME.pack        (in ms) the entries one after the other, then the index: COUNT rows of `RECORD`
DIGEST-COUNT-TIME.pack.used   empty; when it was written, the pack was read

A pack is written once, whole, and never changed: what two processes write at once are two packs. Its name holds the
index's hash, and the index its entries' hashes, so that nothing counts that is not exactly what was written. Merging
writes the merged pack before it deletes those that it is made of: at every moment an entry is in one pack at least, and
who meets a pack that has gone looks again.
"""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from zar_ray.errors import RunError
from zar_ray.storage import Storage

# What an index says of an entry: which video's it is, and of which file's state that was told (all 0: of none); where
# it lies, of `length` 0 where the row only says what a file holds; its hash; and when it was made, in ns.
RECORD = np.dtype(
    [
        *(("video", "<u8", 2), ("path", "<u8", 2), ("size", "<i8"), ("mtime_ns", "<i8")),
        *(("offset", "<i8"), ("length", "<i8"), ("check", "<u8", 2), ("stamp", "<i8")),
    ]
)

PACK_BYTES = 32 * 2**20
"""From this size on a pack is not merged any more."""

_READS_AT_ONCE = 16
_LEFT_SMALL = 16  # packs that a writer lets lie before it merges them
_SAME_TIME = 86400.0  # seconds between the last uses of packs that are merged, as they are evicted together
_USED = ".used"
_NAME = re.compile(r"([0-9a-f]{32})-(\d{1,9})-(\d{1,15})\.pack")


class DamagedError(Exception):
    """What cannot be used, and is made anew; the message names it, in one line."""


class GoneError(Exception):
    """A pack that was merged or deleted since it was listed."""


class Entry(NamedTuple):
    """A row of an index before it has a place, a scalar of `RECORD`, and its content."""

    record: Any
    content: bytes


@dataclass(frozen=True)
class PackFile:
    """A pack as it is listed.

    Attributes:
        name: Its name.
        size: Its bytes.
        entries: Rows of its index.
        used: When it was last written to or read, in seconds since the epoch.
    """

    name: str
    size: int
    entries: int
    used: float


def digest(content: bytes) -> bytes:
    """A hash of 16 bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def words(value: bytes) -> np.ndarray:
    """Such a hash as `RECORD` has it."""
    return np.frombuffer(value, "<u8")


class Index:
    """The rows of many packs, found by video or by file; its arrays may lie in memory that processes share.

    Args:
        packs: Names of packs.
        rows: Of each pack its rows.
    """

    def __init__(self, packs: Sequence[str] = (), rows: Sequence[np.ndarray] = ()) -> None:
        self.packs = tuple(packs)
        self.rows = np.concatenate([np.empty(0, RECORD), *rows])
        self._pack = np.repeat(np.arange(len(packs)), [len(one) for one in rows])
        self._orders = {}
        for name in ("video", "path"):
            order = np.lexsort((self.rows["stamp"], self.rows[name][:, 0]))
            self._orders[name] = (order, self.rows[name][order, 0])

    def newest_first(self, name: str, value: bytes) -> Iterator[tuple[str, Any]]:
        """The rows with such a ``video`` or ``path``, and the packs that they are of."""
        wanted, (order, keys) = words(value), self._orders[name]
        first, end = np.searchsorted(keys, wanted[0], "left"), np.searchsorted(keys, wanted[0], "right")
        for row in order[first:end][::-1]:
            if (self.rows[name][row] == wanted).all():
                yield self.packs[self._pack[row]], self.rows[row]

    def has(self, name: str, values: np.ndarray) -> np.ndarray:
        """Which of some videos or paths there are rows of, by half of their hashes: uint64 (N, 2), bool (N,)."""
        return np.isin(values[:, 0], self._orders[name][1])

    def by_pack(self) -> dict[str, np.ndarray]:
        """Each pack's rows."""
        ends = np.searchsorted(self._pack, np.arange(len(self.packs)), "right")
        return dict(zip(self.packs, np.split(self.rows, ends[:-1]), strict=True)) if self.packs else {}


class Packs:
    """The packs of a folder."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def list(self) -> list[PackFile]:
        """All packs, the longest unused first."""
        listed = {one.name: one for one in self.storage.walk()}
        found = []
        for name, one in listed.items():
            if (match := _NAME.fullmatch(name)) is not None:
                marker = listed.get(name + _USED)
                used = max(int(match[3]) / 1e3, marker.mtime_ns / 1e9 if marker is not None else 0)
                found.append(PackFile(name, one.size, int(match[2]), used))
        return sorted(found, key=lambda pack: (pack.used, pack.name))

    def index(self, known: Index | None = None) -> tuple[Index, list[str]]:
        """Reads the indexes of all packs, but for those that are known.

        Returns:
            The index, and a line on each pack whose index is damaged: what it held is as if it were not there.
        """
        listed = {pack.name: pack for pack in self.list()}
        old = set(known.packs) if known is not None else set()
        if known is not None and old == listed.keys():
            return known, []
        rows, damaged = {}, []
        with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
            new = [pack for name, pack in listed.items() if name not in old]
            for pack, read in zip(new, pool.map(self._tail, new), strict=True):
                if isinstance(read, str):
                    damaged.append(read)
                elif read is not None:
                    rows[pack.name] = read
        if known is not None:
            rows |= {name: of_pack for name, of_pack in known.by_pack().items() if name in listed}
        return Index(tuple(rows), tuple(rows.values())), damaged

    def _tail(self, pack: PackFile) -> np.ndarray | str | None:
        """A pack's rows; or why they cannot be used, in a line; or None where it has gone."""
        length = pack.entries * RECORD.itemsize
        try:
            content = self._range(pack.name, pack.size - length, length) if pack.size >= length else b""
        except GoneError:
            return None
        except DamagedError as error:
            return str(error)
        if digest(content).hex() != pack.name.partition("-")[0]:
            return f"{self.storage.path(pack.name)}: damaged (its index is not what was written)"
        return np.frombuffer(content, RECORD)

    def entry(self, pack: str, record: Any) -> bytes:
        """The content that a row of an index stands for.

        Raises:
            GoneError: There is no such pack any more.
            DamagedError: It is not what was written.
        """
        content = self._range(pack, int(record["offset"]), int(record["length"]))
        if (words(digest(content)) != record["check"]).any():
            raise DamagedError(f"{self.storage.path(pack)}: damaged (the checksum does not match)")
        return content

    def _range(self, name: str, offset: int, length: int) -> bytes:
        try:
            return self.storage.read_range(name, offset, length)
        except RunError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise GoneError(name) from error
            raise DamagedError(str(error)) from error

    def add(self, entries: Sequence[Entry], used: float | None = None) -> str:
        """Writes a pack; returns its name.

        Raises:
            RunError: It cannot be written.
        """
        rows, place = np.array([entry.record for entry in entries], RECORD), 0
        for row, (_, content) in zip(rows, entries, strict=True):
            row["offset"], row["length"], row["check"] = place, len(content), words(digest(content))
            place += len(content)
        index = rows.tobytes()
        # The time is in the name, as a merged pack is no younger than what it is made of.
        name = f"{digest(index).hex()}-{len(rows)}-{int(1e3 * (time.time() if used is None else used))}.pack"
        self.storage.write(name, b"".join([*(entry.content for entry in entries), index]))
        return name

    def touch(self, name: str) -> None:
        """Notes that a pack was read just now.

        Raises:
            RunError: That cannot be written.
        """
        self.storage.write(name + _USED, b"")

    def delete(self, names: Iterable[str]) -> None:
        """Deletes packs, those that are there.

        Raises:
            RunError: One cannot be deleted.
        """
        self.storage.delete_many([name + end for name in names for end in ("", _USED)])

    def merge(self, fold: Callable[[Sequence[bytes]], bytes], limit: float = math.inf) -> int:
        """Puts small packs together, those that were used about the same time; returns how many there are fewer.

        Args:
            fold: Makes one entry of several of one video, the oldest first.
            limit: Bytes of small packs beyond which the others are left for another time.

        Raises:
            RunError: A pack cannot be written or deleted; nothing is lost.
        """
        groups: list[list[PackFile]] = [[]]
        total = 0
        for pack in self.list():
            if pack.size >= PACK_BYTES // 2:
                continue
            total += pack.size
            if total > limit:
                break
            group = groups[-1]
            if group and (sum(one.size for one in group) >= PACK_BYTES or pack.used - group[0].used > _SAME_TIME):
                groups.append(group := [])
            group.append(pack)
        return sum(self._merge(group, fold) for group in groups if len(group) > 1)

    def _merge(self, group: Sequence[PackFile], fold: Callable[[Sequence[bytes]], bytes]) -> int:
        contents: dict[bytes, list[Entry]] = {}
        files: dict[bytes, Any] = {}
        merged = []
        for pack in group:
            read = self._tail(pack)
            if read is None or isinstance(read, str):
                continue  # gone; or what is damaged is not ours to delete here, and counts nowhere
            merged.append(pack)
            for record in read:
                try:
                    if record["length"]:
                        content = self.entry(pack.name, record)
                        contents.setdefault(record["video"].tobytes(), []).append(Entry(record, content))
                    else:
                        path = record["path"].tobytes()
                        files[path] = max(files.get(path, record), record, key=lambda one: one["stamp"])
                except DamagedError:
                    continue
                except GoneError:
                    return 0
        entries = [Entry(record, b"") for record in files.values()]
        for same in contents.values():
            same.sort(key=lambda entry: (entry.record["stamp"], entry.content))
            whole = same[0].content if len(same) == 1 else fold([entry.content for entry in same])
            entries.append(Entry(same[-1].record, whole))
            # Other files with the same content.
            paths = {entry.record["path"].tobytes(): entry.record for entry in same}
            paths.pop(same[-1].record["path"].tobytes())
            entries += [Entry(record, b"") for record in paths.values()]
        if len(merged) < 2:
            return 0
        name = self.add(entries, max(pack.used for pack in merged)) if entries else None
        self.delete(pack.name for pack in merged if pack.name != name)
        return len(merged) - 1


class PackWriter:
    """Adds packs, and puts those of this process together, which it holds in memory until they have their size."""

    def __init__(self, packs: Packs) -> None:
        self._packs = packs
        self._small: list[tuple[str, list[Entry]]] = []
        self._turn = Lock()

    def __reduce__(self) -> tuple[type[PackWriter], tuple[Packs]]:
        return (type(self), (self._packs,))

    def add(self, entries: Sequence[Entry]) -> None:
        """Writes a pack at once.

        Raises:
            RunError: It cannot be written.
        """
        with self._turn:
            self._small.append((self._packs.add(entries), [*entries]))
            every = [entry for _, some in self._small for entry in some]
            whole = sum(len(entry.content) for entry in every) >= PACK_BYTES
            if not whole and len(self._small) < _LEFT_SMALL:
                return
            small, self._small = self._small, []
            if len(small) > 1:
                merged = self._packs.add(every)
                self._packs.delete(name for name, _ in small)
                small = [(merged, every)]
            self._small = [] if whole else small
