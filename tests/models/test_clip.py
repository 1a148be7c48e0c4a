import pytest
import torch

from zar_ray.errors import ConfigError, ModelError
from zar_ray.models.architecture import build_clip
from zar_ray.models.clip import ClipModel
from zar_ray.video.transforms import Preprocessing

TEXTS = (
    "a video of a red circle.",
    "b.",
    "a much longer text about somebody who is juggling seven small soccer balls.",
)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_images_are_embedded_as_open_clip_does(model, clip, pixels):
    with torch.no_grad():
        expected = clip.encode_image(pixels)
    assert torch.allclose(model.encode_images(pixels), expected, atol=1e-6)


def test_image_embeddings_can_take_part_in_autograd(model, pixels):
    embeddings = model.encode_images(pixels)
    weight = torch.ones(embeddings.shape[1], requires_grad=True)
    (embeddings * weight).sum().backward()
    assert torch.allclose(weight.grad, embeddings.sum(dim=0))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_is_the_image_encoders_alone(clip, model, architecture, pixels, precision):
    mixed = ClipModel(clip, "tiny", Preprocessing(32), architecture, precision)
    embeddings, exact = mixed.encode_images(pixels), model.encode_images(pixels)
    assert embeddings.dtype == torch.float32
    assert not torch.equal(embeddings, exact)
    assert torch.nn.functional.cosine_similarity(embeddings, exact).min() > 0.999
    ids = model.tokenize(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text = mixed.encode_embedded_text(mixed.embed_tokens(ids), ids)
    assert torch.equal(text, model.encode_embedded_text(model.embed_tokens(ids), ids))


def test_texts_are_embedded_as_open_clip_does(model, clip):
    ids = model.tokenize(TEXTS)
    with torch.no_grad():
        expected = clip.encode_text(ids)
    full = model.encode_embedded_text(model.embed_tokens(ids), ids)
    assert torch.allclose(full, expected, atol=1e-6)


def test_nothing_after_the_end_of_text_matters(model):
    ids = model.tokenize(TEXTS)
    full = model.encode_embedded_text(model.embed_tokens(ids), ids)
    needed = ids[:, : int(ids.argmax(dim=1).max()) + 1]
    short = model.encode_embedded_text(model.embed_tokens(needed), needed)
    assert torch.allclose(short, full, atol=1e-6)


def test_tokens_are_clips(model):
    ids = model.tokenize(["a video of a Red  circle."])
    assert ids.shape == (1, 77)
    assert ids[0, :9].tolist() == [49406, 320, 1455, 539, 320, 736, 7117, 269, 49407]
    assert ids[0, 9:].eq(0).all()


def test_a_text_that_does_not_fit_is_named(model):
    fitting = "word " * 75
    assert model.tokenize([fitting])[0, 76] == 49407
    with pytest.raises(ConfigError, match=r'"word word .*…" is 78 tokens long and the model reads 77'):
        model.tokenize([fitting + "word"])


def test_another_vocabulary_is_refused(architecture):
    architecture["text_cfg"]["vocab_size"] = 1000
    with pytest.raises(ModelError, match="vocabulary has 1000 tokens"):
        ClipModel(build_clip(architecture), "odd", Preprocessing(32), architecture)
