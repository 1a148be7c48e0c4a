"""Weights that lie elsewhere are read once a node, by whichever worker comes first and lives."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from zar_ray.errors import ModelError
from zar_ray.models import fetching
from zar_ray.storage import Storage

CONTENT = bytes(range(256)) * 40
MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /tmp rw,nosuid - tmpfs tmpfs rw,size=1g
31 22 0:40 / /mnt/two\040words rw,relatime shared:8 - nfs4 server:/export rw,vers=4.2
32 31 0:41 / /mnt/two\040words/scratch rw - xfs /dev/nvme0n1 rw
33 22 0:42 / /data rw - fuse.gcsfuse bucket rw
34 22 0:43 / /over rw - ext4 /dev/sdb rw
35 22 0:44 / /over rw - lustre mds@tcp:/fs rw
36 22 0:45 / /here rw - fuse.fuse-overlayfs overlay rw
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(fetching.PLACE, str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file of a shared file system."""
    monkeypatch.setattr(fetching, "is_shared", lambda path: True)
    (tmp_path / "shared").mkdir()
    file = tmp_path / "shared" / "weights.safetensors"
    file.write_bytes(CONTENT)
    return file


@pytest.fixture
def reads(monkeypatch):
    """Bytes that were asked of the source, request by request."""
    asked, real = [], Storage.read_range
    monkeypatch.setattr(Storage, "read_range", lambda own, *told: asked.append(told[2]) or real(own, *told))
    return asked


def copies(cache):
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def _worker(source, log, barrier, first_hangs):
    """What a replica's process does, with a note of every read of the source; the first one may hang in it."""
    fetching.is_shared = lambda path: True
    fetching._AT_ONCE = 4096
    real = Storage.read_range

    def noted(own, name, start, count):
        with log.open("a") as file:
            file.write(f"{os.getpid()} {count}\n")
        time.sleep(600 if first_hangs and start and log.read_text().startswith(f"{os.getpid()} ") else 0.02)
        return real(own, name, start, count)

    Storage.read_range = noted
    barrier.wait(60)
    if fetching.on_this_node(source).read_bytes() != CONTENT:
        os._exit(3)


@pytest.mark.process
@pytest.mark.parametrize("killed", [False, True])
def test_many_workers_of_a_node_read_the_source_once_and_one_that_dies_blocks_none(cache, source, tmp_path, killed):
    spawn, log = multiprocessing.get_context("spawn"), tmp_path / "reads"
    log.touch()
    barrier = spawn.Barrier(3)
    workers = [spawn.Process(target=_worker, args=(source, log, barrier, killed)) for _ in range(3)]
    for worker in workers:
        worker.start()
    by = {worker.pid: 0 for worker in workers}
    if killed:
        while len(log.read_text().splitlines()) < 2:
            time.sleep(0.01)
        dead = int(log.read_text().split()[0])
        os.kill(dead, signal.SIGKILL)
        by.pop(dead)
    for worker in workers:
        worker.join(60)
    assert sorted(worker.exitcode for worker in workers) == ([-9, 0, 0] if killed else [0, 0, 0])
    for line in log.read_text().splitlines():
        pid, count = map(int, line.split())
        if pid in by:
            by[pid] += count
    assert sorted(by.values())[-1] == len(CONTENT) == sum(by.values())
    assert len(copies(cache)) == 1


def test_a_file_of_this_machine_is_read_in_place(cache, tmp_path):
    file = tmp_path / "weights.pt"
    file.write_bytes(CONTENT)
    assert fetching.on_this_node(file) == file
    assert fetching.on_this_node(tmp_path / "gone.pt") == tmp_path / "gone.pt"
    assert not cache.exists()


@pytest.mark.parametrize(
    ("path", "kind", "shared"),
    [
        ("/etc/weights.pt", "ext4", False),
        ("/tmp/a/b", "tmpfs", False),
        ("/mnt/two words/a", "nfs4", True),
        ("/mnt/two words/scratch/a", "xfs", False),
        ("/mnt/two", "ext4", False),
        ("/data/x", "fuse.gcsfuse", True),
        ("/over/x", "lustre", True),
        ("/here/x", "fuse.fuse-overlayfs", False),
    ],
)
def test_the_kind_of_file_system_tells_what_is_shared(path, kind, shared):
    assert fetching.file_system_of(Path(path), MOUNTS.strip()) == kind
    assert bool(fetching._SHARED.fullmatch(kind)) == shared


def test_another_file_at_the_same_place_is_another_copy(cache, source, reads):
    first = fetching.on_this_node(source)
    assert first.suffix == ".safetensors"
    assert fetching.on_this_node(str(source)) == first
    assert sum(reads) == len(CONTENT)
    os.utime(source, ns=(0, 10**18))
    assert fetching.on_this_node(source) != first
    source.write_bytes(b"new")
    assert fetching.on_this_node(source).read_bytes() == b"new"
    assert first.read_bytes() == CONTENT


def test_a_copy_that_is_cut_off_is_made_again(cache, source, reads):
    copy = fetching.on_this_node(source)
    copy.write_bytes(CONTENT[:9])
    assert fetching.on_this_node(source).read_bytes() == CONTENT
    copy.unlink()
    assert fetching.on_this_node(source).read_bytes() == CONTENT
    assert sum(reads) == 3 * len(CONTENT)


def test_an_empty_file_is_copied(cache, source):
    source.write_bytes(b"")
    assert fetching.on_this_node(source).read_bytes() == b""


def test_a_file_that_is_written_to_while_it_is_read_is_refused(cache, source, monkeypatch):
    real = Storage.read_range

    def growing(own, *told):
        source.write_bytes(CONTENT * 2)
        return real(own, *told)

    monkeypatch.setattr(Storage, "read_range", growing)
    with pytest.raises(ModelError, match="was written to while it was read"):
        fetching.on_this_node(source)


def test_copies_that_nobody_used_for_a_week_make_room(cache, source):
    old = fetching.on_this_node(source)
    kept = [old.with_name("used.pt"), old.with_name("unused.pt")]
    for file, days in zip(kept, (6, 8), strict=True):
        file.write_bytes(b"x")
        os.utime(file, (0, time.time() - days * 86400))
    os.utime(old, (0, 0))
    source.write_bytes(b"new")
    new = fetching.on_this_node(source)
    assert copies(cache) == sorted([new.name, "used.pt"])
    os.utime(new, (0, 0))
    fetching.on_this_node(source)
    assert time.time() - new.stat().st_mtime < 60


def test_mistakes_are_one_line_that_names_the_way_out(cache, source, monkeypatch):
    with pytest.raises(ModelError, match=r"gone\.pt: no such file"):
        fetching.on_this_node(source.with_name("gone.pt"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "read_range", full)
        with pytest.raises(ModelError, match=r"No space left.* with room in ZAR_NODE_CACHE"):
            fetching.on_this_node(source)
    cache.chmod(0o777)
    with pytest.raises(ModelError, match="they can write to it; name a folder of your own in ZAR_NODE_CACHE"):
        fetching.on_this_node(source)
    monkeypatch.setenv(fetching.PLACE, str(source / "below"))
    with pytest.raises(ModelError, match="cannot hold copies of weights"):
        fetching.on_this_node(source)


def test_a_checkpoint_of_a_shared_folder_is_read_from_its_copy(cache, source, reads):
    import torch
    from safetensors.torch import save_file

    from zar_ray.models.checkpoints import read_checkpoint

    for name, save in (("a.safetensors", save_file), ("a.pt", torch.save)):
        reads.clear()
        file = source.with_name(name)
        save({"one": torch.arange(3.0)}, file)
        for _ in range(2):
            read = read_checkpoint(file)
            assert (read.path, read.tensors["one"].tolist()) == (file, [0, 1, 2])
        assert sum(reads) == file.stat().st_size
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(ModelError, match=str(file)) as caught:
            read_checkpoint(file)
        assert str(cache) not in str(caught.value)


def test_weights_of_a_hub_are_downloaded_once_a_node(cache, tmp_path, monkeypatch):
    from zar_ray.models import loading

    file, downloads = tmp_path / "hub.safetensors", []

    def download(config):
        downloads.append(config)
        time.sleep(0.1)
        file.write_bytes(b"x")
        return str(file)

    monkeypatch.setattr(loading, "cached_weights", lambda model, tag: file if file.exists() else None)
    monkeypatch.setattr(loading, "hub_problem", lambda: None)
    monkeypatch.setattr(loading, "download_pretrained", download)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(loading._weights_file("ViT-B-16", "openai", {}))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(downloads)) == ([file] * 4, 1)
