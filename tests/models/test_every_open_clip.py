"""Every (model, tag) of open_clip's: the same features and pixels, and contexts that can be tuned.

Towers are cut to a layer or two and weights made up; what a config says of order, pooling, masks, projections, tokens
and pixels stays. Towers of timm's are replaced by one small one: zar-ray runs them as they are.
"""

from __future__ import annotations

import json
import warnings
from functools import cache

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from text_kits import tiny_encoder, tiny_tokenizer
from torch.nn.functional import normalize

from zar_ray.errors import ConfigError
from zar_ray.models.architecture import named_architecture
from zar_ray.models.checkpoints import clip_with
from zar_ray.models.clip import ClipModel
from zar_ray.models.formats import openai_layout
from zar_ray.models.model_folders import preprocessing_of
from zar_ray.models.text import PromptedClasses, encode_tokens
from zar_ray.video.options import ViewConfig
from zar_ray.video.pixels import normalise
from zar_ray.video.transforms import crop_boxes, resize_frame, short_side_for

PAIRS = open_clip.list_pretrained()
WAYS = {json.dumps(open_clip.get_pretrained_cfg(*pair) | {"hf_hub": "", "url": ""}) for pair in PAIRS}


def kind_of(name):
    """All of a config but sizes, which tests cut: names of one kind differ in nothing that is left."""
    config = named_architecture(name)
    sizes = {"width", "heads", "layers", "image_size", "patch_size", "head_width", "mlp_ratio", "timm_model_name"}
    towers = {tower: {key: config[tower][key] for key in config[tower].keys() - sizes} for tower in TOWERS}
    shape = "timm" if "timm_model_name" in config["vision_cfg"] else type(config["vision_cfg"]["layers"]).__name__
    tokens = towers["text_cfg"].get("hf_tokenizer_name", "")
    towers["text_cfg"]["hf_tokenizer_name"] = "SigLIP2" if "SigLIP2" in tokens else tokens
    others = {key: config[key] for key in config.keys() - {*TOWERS, "embed_dim", "multimodal_cfg"}}
    return json.dumps([shape, towers, others, "multimodal_cfg" in config], sort_keys=True)


TOWERS = ("vision_cfg", "text_cfg")
KIND_OF = {name: kind_of(name) for name in sorted({name for name, _ in PAIRS}, reverse=True)}
CHOSEN = {kind: name for name, kind in KIND_OF.items()}
NAMES = sorted(CHOSEN.values())
TEXTS = ["a video of a red circle.", "jump", "Riding a horse, twice!", "x"]
FAMILIES = {
    "CLIP": "ViT-B-16",
    "SigLIP": "ViT-B-16-SigLIP",
    "SigLIP2": "ViT-B-32-SigLIP2-256",
    "CoCa": "coca_ViT-B-32",
    "MobileCLIP": "MobileCLIP-B",
    "CLIPA": "ViT-L-14-CLIPA",
    "MetaCLIP 2": "ViT-H-14-worldwide",
    "PE-Core": "PE-Core-B-16",
    "RoBERTa": "roberta-ViT-B-32",
    "XLM-RoBERTa": "xlm-roberta-base-ViT-B-32",
    "NLLB": "nllb-clip-base",
    "NLLB-SigLIP": "nllb-clip-base-siglip",
}


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """Small tokenizers and text encoders in the place of those on the hub."""
    folder = tmp_path_factory.mktemp("kits")
    tokenizer = cache(lambda name: tiny_tokenizer(name, folder / f"tokenizer-{name.replace('/', '-')}"))
    encoder = cache(lambda name, size: tiny_encoder(name, size, folder / f"encoder-{name.replace('/', '-')}"))
    return tokenizer, encoder


@pytest.fixture(autouse=True)
def small_timm(monkeypatch):
    make = timm.create_model

    def create(name, **asked):
        wanted = {"num_classes", "global_pool"}
        kept = {key: value for key, value in asked.items() if key in wanted and value is not None}
        size = 64
        return make("vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=2, img_size=size, **kept)

    monkeypatch.setattr(timm, "create_model", create)


def cut(name, kits):
    """A model's config, of small towers."""
    tokenizer, encoder = kits
    config = named_architecture(name)
    vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    vision["image_size"] = 64
    if "timm_model_name" not in vision:
        if isinstance(vision["layers"], list):
            vision |= {"layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
        else:
            vision |= {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    if kind := text.get("hf_tokenizer_name"):
        text["hf_tokenizer_name"], size = tokenizer(kind)
        if "hf_model_name" in text:
            text["hf_model_name"] = encoder(text["hf_model_name"], size)
        elif text["vocab_size"] != 49408:
            text["vocab_size"] = size + 3
        else:
            text["vocab_size"] = size
    if "hf_model_name" not in text:
        text |= {"width": 16, "heads": 2, "layers": 2}
    if "multimodal_cfg" in config:
        cut_decoder = {"width": 16, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
        config["multimodal_cfg"] = {**config["multimodal_cfg"], **cut_decoder}
    return {
        **config,
        "embed_dim": 16 if text.get("proj_type") == "none" else 24,
        "vision_cfg": vision,
        "text_cfg": text,
    }


def both(name, kits, monkeypatch):
    """open_clip's own model of a cut config with weights made up, and ours of the same weights."""
    config = cut(name, kits)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    torch.manual_seed(3)
    theirs = open_clip.create_model(name, pretrained=None, pretrained_text=False).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    clip = clip_with(config, openai_layout(theirs.state_dict()), name)
    pixels = preprocessing_of(open_clip.get_pretrained_cfg(*next(one for one in PAIRS if one[0] == name)), 64, name)
    return theirs, ClipModel(clip, name, pixels, config)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_features_are_open_clips(name, kits, monkeypatch):
    theirs, ours = both(name, kits, monkeypatch)
    ids = open_clip.get_tokenizer(name)(TEXTS)
    assert torch.equal(ours.tokenize(TEXTS), ids)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for mine, own in (
            (encode_tokens(ours, ids), theirs.encode_text(ids, normalize=True)),
            (ours.encode_images(images), theirs.encode_image(images, normalize=True)),
        ):
            assert torch.allclose(normalize(mine, dim=-1), own, atol=1e-5)


@pytest.mark.slow
def test_all_can_be_classified_and_tuned(kits, monkeypatch):
    """The table of all pairs: of each what stands in the way, if anything."""
    tuned, refused = [], {}
    for name in NAMES:
        _, ours = both(name, kits, monkeypatch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that some run every prompt as a whole
            classes = PromptedClasses(ours, ["run", "red_circle", "jump"])
        try:
            context = classes.initial_context.clone().requires_grad_()
        except ConfigError as error:
            refused[name] = str(error)
            continue
        features = classes.features(context)
        assert torch.allclose(features, classes.initial_features, atol=1e-6)
        assert torch.autograd.grad(features[0, 0], context)[0].abs().max() > 0, name
        tuned.append(name)
    tuned_pairs = sum(CHOSEN[KIND_OF[name]] in tuned for name, _ in PAIRS)
    assert (len(PAIRS), tuned_pairs, refused) == (196, 196, {})


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_finite_differences(family, kits, monkeypatch):
    _, ours = both(FAMILIES[family], kits, monkeypatch)
    ours.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = PromptedClasses(ours, ["run", "red_circle", "jump"])
    weights = torch.randn(3, 24, dtype=torch.float64)
    context = classes.initial_context

    def loss(moved):
        return (classes.features(moved) * weights).sum()

    leaf = context.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    direction, step = torch.randn_like(context), 1e-5
    with torch.no_grad():
        differences = (loss(context + step * direction) - loss(context - step * direction)) / (2 * step)
    assert torch.allclose((gradient * direction).sum(), differences, rtol=1e-5, atol=1e-8)
    of_trail = classes.initial_gradients(weights[None].to(classes.initial_features))
    assert torch.allclose(of_trail[0], gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("size", [(90, 160), (161, 90), (64, 64), (50, 47)])
def test_pixels_are_those_of_the_checkpoints_own_transform(way, size):
    config = json.loads(way)
    asked = {key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in config}
    assert_equal_pixels(asked, 64, size)


@pytest.mark.parametrize("fill", [0, 128])
@pytest.mark.parametrize("size", [(90, 160), (161, 90), (64, 64), (31, 201)])
def test_pixels_of_frames_filled_up_to_a_square(size, fill):
    assert_equal_pixels({"resize_mode": "longest", "fill_color": fill, "interpolation": "bilinear"}, 56, size)


def assert_equal_pixels(config, side, size):
    frame = np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = image_transform_v2(PreprocessCfg(size=side, **config), is_train=False)(Image.fromarray(frame))
    ours = preprocessing_of(config, side, "here")
    views = ViewConfig(crops=1, eval_views="1x1")
    resized = resize_frame(frame, short_side_for(views, ours), ours.scaling)
    box = crop_boxes(*resized.shape[:2], side, 1)[0][1]
    crop = resized[box.top : box.top + side, box.left : box.left + side]
    mine = normalise(torch.from_numpy(crop.copy())[None], ours)[0]
    assert torch.allclose(mine, theirs, atol=1e-5)
