"""What PyTorch files may hold, and that nothing inside them is run."""

import functools
import os
import pickle
import resource
import sys
import types
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import psutil
import pytest
import torch

from zar_ray.errors import ModelError
from zar_ray.models.checkpoints import read_checkpoint
from zar_ray.models.unpickling import read_pickled


def save(content, path, how, protocol=2):
    if how == "plain":
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=how == "zip")


@pytest.fixture
def yacs_node(monkeypatch):
    """A class that pickles as yacs' `CfgNode`, of its module and with its attributes; gone before anything is read."""

    class CfgNode(dict):
        def __init__(self, *content):
            super().__init__(*content)
            attributes = {"__immutable__": True, "__deprecated_keys__": {"OLD"}, "__renamed_keys__": {}}
            self.__dict__.update(attributes)

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)

    def forget():
        monkeypatch.delitem(sys.modules, "yacs.config")
        monkeypatch.delitem(sys.modules, "yacs")

    return CfgNode, forget


@pytest.mark.parametrize("how", ["zip", "old"])
def test_options_of_yacs_are_read_as_plain_mappings_without_yacs(tmp_path, yacs_node, how):
    node, forget = yacs_node
    config = node({"DATA": node({"ROOT": "/data", "SIZES": [224, (1, 2.5)]}), "OPTS": None})
    save({"model": {"weight": torch.ones(2)}, "config": config}, tmp_path / "a.pt", how)
    forget()
    read = read_pickled(tmp_path / "a.pt")
    assert read["config"] == {"DATA": {"ROOT": "/data", "SIZES": [224, (1, 2.5)]}, "OPTS": None}
    assert type(read["config"]["DATA"]) is OrderedDict
    assert torch.equal(read["model"]["weight"], torch.ones(2))
    assert "yacs" not in sys.modules


@pytest.mark.parametrize("how", ["zip", "old"])
def test_numpy_scalars_are_read_as_plain_values(tmp_path, how):
    values = [np.float64(83.25), np.float32(0.5), np.float16(2), np.int64(-(2**40)), np.uint8(200), np.bool_(True)]
    save({"values": values}, tmp_path / "a.pt", how)
    read = read_pickled(tmp_path / "a.pt")["values"]
    assert read == [83.25, 0.5, 2.0, -(2**40), 200, True]
    assert [type(value) for value in read] == [float, float, float, int, int, bool]


class Attack:
    """Would make a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["zip", "old", "plain"])
def test_code_is_refused_and_named_and_not_run(tmp_path, how, protocol):
    weights = {} if how == "plain" else {"weight": torch.zeros(1)}
    save({"state_dict": weights, "config": Attack(tmp_path / "witness")}, tmp_path / "attack.pt", how, protocol)
    said = rf"attack\.pt: refers to {os.mkdir.__module__}\.mkdir, and is not unpickled for safety"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModelError, match=said) as caught:
            read_checkpoint(tmp_path / "attack.pt")
    assert not (tmp_path / "witness").exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["zip", "old", "plain"])
@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
        (functools.partial(len, "x"), r"functools\.partial"),
        (np.zeros(2), r"numpy\._core\.multiarray\._reconstruct"),
        (eval, "eval"),
    ],
)
def test_other_classes_are_refused_and_named(tmp_path, how, thing, name):
    save({"thing": thing}, tmp_path / "a.pt", how)
    with pytest.raises(ModelError, match=f"refers to {name}, and is not unpickled for safety"):
        read_pickled(tmp_path / "a.pt")


def test_a_numpy_scalar_may_not_hold_an_object(tmp_path):
    class Disguise:
        def __reduce__(self):
            return np._core.multiarray.scalar, (np.dtype("O"), Attack(tmp_path / "witness"))

    save({"thing": Disguise()}, tmp_path / "a.pt", "zip")
    with pytest.raises(ModelError, match=r"refers to .*\.mkdir"):
        read_pickled(tmp_path / "a.pt")

    class Inside:
        def __reduce__(self):
            return np._core.multiarray.scalar, (np.dtype("O"), b"12345678")

    save({"thing": Inside()}, tmp_path / "b.pt", "zip")
    with pytest.raises(ModelError, match="not unpickled for safety"):
        read_pickled(tmp_path / "b.pt")
    assert not (tmp_path / "witness").exists()


def test_what_is_let_through_is_let_through_only_here(tmp_path):
    save({"value": np.float64(1)}, tmp_path / "a.pt", "zip")
    before = set(torch.serialization.get_safe_globals())
    read_pickled(tmp_path / "a.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)


def claiming(path, how, size, stride):
    """A file of one number, of which a tensor claims to have many."""
    save({"state_dict": {"weight": torch.zeros(1).as_strided(size, stride)}}, path, how)
    assert path.stat().st_size < 2000
    return path


@pytest.mark.parametrize("how", ["zip", "old"])
def test_a_tensor_that_claims_more_than_the_file_holds_is_refused_before_it_is_made(tmp_path, how):
    claiming(tmp_path / "a.pt", how, (10**5, 10**4), (0, 0))
    limit, before = resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(limit, (psutil.Process().memory_info().vms + 2**30, before[1]))
    try:
        with pytest.raises(ModelError, match=r"a\.pt: claims to hold 4000000000 bytes, and has \d+;"):
            read_checkpoint(tmp_path / "a.pt")
    finally:
        resource.setrlimit(limit, before)


def test_many_tensors_that_claim_together_are_refused(tmp_path):
    one = torch.zeros(1)
    save({f"weight{n}": one.as_strided((2**23 + n,), (0,)) for n in range(20)}, tmp_path / "a.pt", "zip")
    with pytest.raises(ModelError, match="claims to hold"):
        read_pickled(tmp_path / "a.pt")


@pytest.mark.parametrize("how", ["zip", "old"])
def test_tensors_that_share_what_they_hold_are_read(tmp_path, how):
    base = torch.arange(12.0)
    save({"a": base, "b": base.reshape(3, 4).T, "c": torch.zeros(1).expand(7)}, tmp_path / "a.pt", how)
    read = read_pickled(tmp_path / "a.pt")
    assert torch.equal(read["b"], base.reshape(3, 4).T)
    assert torch.equal(read["c"], torch.zeros(7))


def test_a_circle_of_containers_is_no_endless_search(tmp_path):
    circle = {"weight": torch.ones(2)}
    circle["self"] = circle
    save(circle, tmp_path / "a.pt", "zip")
    assert torch.equal(read_pickled(tmp_path / "a.pt")["weight"], torch.ones(2))


def rezipped(path, change):
    """The archive with its pieces changed, packed."""
    with zipfile.ZipFile(path) as before:
        pieces = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for name, content in pieces.items():
            after.writestr(name, change(name, content))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    save({"weight": torch.ones(2)}, tmp_path / "a.pt", "zip")
    rezipped(tmp_path / "a.pt", lambda name, content: bytes(2**28) if "/data/" in name else content)
    with pytest.raises(ModelError, match="claims to hold 2684"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_piece_that_is_shorter_than_its_tensor_is_refused(tmp_path):
    save({"weight": torch.ones(1000)}, tmp_path / "a.pt", "zip")
    rezipped(tmp_path / "a.pt", lambda name, content: content[:16] if "/data/" in name else content)
    with pytest.raises(ModelError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "a.pt")


def test_tensors_that_are_no_arrays_are_refused(tmp_path):
    quantised = torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8)
    for number, odd in enumerate((torch.eye(3).to_sparse(), torch.empty(2, device="meta"), quantised)):
        save({"weight": odd}, tmp_path / f"{number}.pt", "zip")
        with pytest.raises(ModelError, match="no plain array of numbers"):
            read_checkpoint(tmp_path / f"{number}.pt")


def test_want_of_memory_is_one_line(tmp_path, monkeypatch):
    save({"weight": torch.ones(2)}, tmp_path / "a.pt", "zip")

    def hungry(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch, "load", hungry)
    with pytest.raises(ModelError, match=r"a\.pt: cannot be read as a checkpoint \(it takes more memory than there"):
        read_checkpoint(tmp_path / "a.pt")
