import open_clip
import pytest

from zar_ray.errors import ModelError
from zar_ray.models.architecture import build_clip, infer_architecture, model_name, named_architecture


def test_inferred_architecture_builds_the_same_tensors(clip, architecture):
    inferred = infer_architecture(clip.state_dict(), "here")
    assert inferred == architecture
    shapes = {name: tensor.shape for name, tensor in build_clip(inferred).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in clip.state_dict().items()}


def test_an_unusual_mlp_is_inferred(architecture):
    architecture["text_cfg"]["mlp_ratio"] = 2.0
    architecture["vision_cfg"]["mlp_ratio"] = 3.0
    assert infer_architecture(build_clip(architecture).state_dict(), "here") == architecture


def test_resnet_is_inferred():
    config = named_architecture("RN50-quickgelu")
    config["text_cfg"] |= {"width": 64, "heads": 1, "layers": 1}
    inferred = infer_architecture(build_clip(config).state_dict(), "here")
    assert inferred["vision_cfg"]["layers"] == [3, 4, 6, 3]
    assert inferred["vision_cfg"]["image_size"] == 224
    assert inferred["text_cfg"] == {**config["text_cfg"], "context_length": 77, "vocab_size": 49408}


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14-336-quickgelu"])
def test_architectures_know_their_name(name):
    assert model_name(named_architecture(name)) == name


def test_misspelt_model_suggests_the_right_one():
    with pytest.raises(ModelError, match='did you mean "ViT-B-16-quickgelu"'):
        named_architecture("ViT-B-16-quikgelu")


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("actoinclip", "actionclip"), ("vificlp", "vificlip"), ("ViFi-CLIP", "vificlip"), ("vita-clip", "vitaclip")],
)
def test_misspelt_systems_suggest_the_systems(misspelt, meant):
    with pytest.raises(ModelError, match=f'no model is called "{misspelt}"; did you mean "{meant}"'):
        named_architecture(misspelt)


def test_a_system_is_no_architecture():
    with pytest.raises(ModelError, match=r'"ezclip" is a published system, .* as ViT-B-16-quickgelu'):
        named_architecture("ezclip")


def test_foreign_state_dict_is_refused_by_what_it_lacks():
    with pytest.raises(ModelError, match=r"here: not a CLIP checkpoint: it lacks text_projection .*layer\.weight"):
        infer_architecture({"layer.weight": open_clip.CLIP.__init__.__defaults__}, "here")  # type: ignore[dict-item]


def test_what_is_no_config_is_refused():
    with pytest.raises(ModelError, match="not an open_clip model config"):
        build_clip({"embed_dim": 8, "vision_cfg": {"colour": "red"}, "text_cfg": {}})
