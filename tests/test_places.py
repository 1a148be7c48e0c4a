"""An option's file is a path or a URI, on the command line, in files and in what a run keeps of its options."""

from pathlib import Path

import pytest
import yaml
from object_store import object_store
from pydantic import BaseModel, ValidationError

from zar_ray.commands.parsing import parse_run
from zar_ray.errors import ModelError
from zar_ray.models.checkpoints import read_checkpoint
from zar_ray.models.model_folders import config_beside
from zar_ray.options.places import FilePlace, RemoteFile, file_of
from zar_ray.study.options import EvalConfig

URI = "s3://zar-bucket/weights #1/a b.safetensors"


class Some(BaseModel):
    file: FilePlace | None = None


@pytest.mark.parametrize(("place", "kind"), [(URI, RemoteFile), ("/a/b.pt", Path), (Path("b.pt"), Path)])
def test_a_file_survives_yaml_and_the_command_line(place, kind):
    kept = yaml.safe_load(yaml.safe_dump(Some(file=place).model_dump(mode="json")))
    assert kept == {"file": str(place)}
    assert isinstance(Some.model_validate(kept).file, kind)
    said = parse_run(EvalConfig, ["--checkpoint", str(place)], "zar eval").options.checkpoint
    assert (str(said), isinstance(said, kind)) == (str(place), True)
    assert (said.stem, said.suffix) == (Path(str(place)).stem, Path(str(place)).suffix)


def test_what_is_no_place_is_refused():
    with pytest.raises(ValidationError, match="must be a path or a URI"):
        Some(file=3)


@pytest.mark.process
def test_a_checkpoint_is_read_from_a_bucket(monkeypatch, tiny_checkpoint, tmp_path):
    with object_store(monkeypatch, share=0.2, seed=2) as store:
        store.bucket("zar-bucket")
        store.put("zar-bucket", "weights #1/a b.safetensors", tiny_checkpoint.read_bytes())
        config = tmp_path / "open_clip_config.json"
        config.write_text('{"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}')
        assert config_beside(tmp_path / "any.pt") == ({"vision_cfg": {}, "text_cfg": {}}, None)
        assert config_beside(file_of(URI)) is None
        store.put("zar-bucket", f"weights #1/{config.name}", config.read_bytes())
        assert config_beside(file_of(URI)) == config_beside(tmp_path / "any.pt")
        store.put("zar-bucket", "bad.pt", b"nothing of the kind")
        here, there = read_checkpoint(tiny_checkpoint), read_checkpoint(URI)
        assert (there.path, there.architecture) == (file_of(URI), here.architecture)
        assert all(there.tensors[name].equal(tensor) for name, tensor in here.tensors.items())
        with pytest.raises(ModelError, match=r"^s3://zar-bucket/bad\.pt: "):
            read_checkpoint("s3://zar-bucket/bad.pt")
        with pytest.raises(ModelError, match=r"s3://zar-bucket/none\.pt: no such checkpoint file"):
            read_checkpoint("s3://zar-bucket/none.pt")
