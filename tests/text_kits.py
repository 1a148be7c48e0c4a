"""Small tokenizers and text encoders of the kinds that models of open_clip's take from the hub."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import M2M100Config, PreTrainedTokenizerFast, RobertaConfig, XLMRobertaConfig

_CORPUS = [
    "a video of a red circle.",
    "riding a horse, twice!",
    "jump run walk swim apply eye makeup",
    "the quick brown fox jumps over the lazy dog",
    "x a video photo picture",
] * 3


def tiny_tokenizer(name: str, folder: Path) -> tuple[str, int]:
    """A tokenizer that frames, fills up and cases as one of the hub's; its folder, and how many tokens it knows."""
    if "bert" in name and "roberta" not in name:
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.train_from_iterator(_CORPUS, trainers.WordPieceTrainer(special_tokens=list(special.values())))
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return _saved(made, folder, special)
    if name == "roberta-base":
        special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=list(special.values()), initial_alphabet=alphabet)
        made.train_from_iterator(_CORPUS, trainer)
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        return _saved(made, folder, special)
    # SentencePiece's kinds: words bear a mark in front
    if "nllb" in name or "xlm" in name:
        special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        frame = ("eng_Latn", 4) if "nllb" in name else ("<s>", 0)
        single = [f"{frame[0]} $A </s>", [frame, ("</s>", 2)]]
        more = ["eng_Latn"]
    elif "SigLIP2" in name:
        special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
        single, more = ["$A <eos>", [("<eos>", 1)]], []
    else:  # T5's, in which the end of text fills up as well
        special = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
        single, more = ["$A </s>", [("</s>", 1)]], []
    names = list(dict.fromkeys([*special.values(), *more]))
    made = Tokenizer(models.BPE(unk_token=special["unk_token"]))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=names))
    made.post_processor = processors.TemplateProcessing(single=single[0], special_tokens=single[1])
    return _saved(made, folder, special)


def tiny_encoder(name: str, size: int, folder: Path) -> str:
    """The folder of a config of the same kind, for a vocabulary of so many tokens."""
    if "nllb" in name:
        config = M2M100Config(
            vocab_size=size, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=128,
        )  # fmt: skip
    else:
        kind = XLMRobertaConfig if "xlm" in name else RobertaConfig
        config = kind(
            vocab_size=size, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=128, pad_token_id=1,
        )  # fmt: skip
    config.save_pretrained(folder)
    return str(folder)


def _saved(made: Tokenizer, folder: Path, special: dict[str, str]) -> tuple[str, int]:
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    fast.save_pretrained(folder)
    return str(folder), len(fast)


# Models of the kinds that came after CLIP, as folders of open_clip's: towers of a layer or two, weights made up.
TINY_MODELS = {
    "SigLIP2": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            **{
                "context_length": 64,
                "hf_tokenizer_name": "timm/ViT-B-16-SigLIP2",
                "width": 16,
                "heads": 2,
                "layers": 1,
            },
            **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-06}},
            **{"tokenizer_kwargs": {"clean": "canonicalize"}, "act_kwargs": {"approximate": "tanh"}},
        },
    },
    "PE-Core": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": None},
        "text_cfg": {"context_length": 32, "width": 16, "heads": 2, "layers": 2, "vocab_size": 49408},
    },
    "MobileCLIP": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 160,
            "timm_model_name": "test_convnext",
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
        "text_cfg": {"width": 16, "heads": 2, "layers": 2, "no_causal_mask": True, "vocab_size": 49408},
    },
}
_HALF, _NONE = ([0.5] * 3, [0.5] * 3), ([0.0] * 3, [1.0] * 3)
_PIXELS = {
    "SigLIP2": (_HALF, "bicubic", "squash"),
    "PE-Core": (_HALF, "bilinear", "squash"),
    "MobileCLIP": (_NONE, "bilinear", "shortest"),
}


def tiny_model(kind: str, folder: Path) -> Path:
    """The folder of a small model of a kind, which needs no network."""
    folder.mkdir(parents=True)
    config = json.loads(json.dumps(TINY_MODELS[kind]))
    text = config["text_cfg"]
    if "hf_tokenizer_name" in text:
        text["vocab_size"] = tiny_tokenizer(text["hf_tokenizer_name"], folder)[1]
    torch.manual_seed(5)
    model = open_clip.CustomTextCLIP(**{name: value for name, value in config.items() if name != "custom_text"})
    with torch.no_grad():
        for parameter in model.text.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    weights = {name: one.contiguous() for name, one in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    (mean, std), interpolation, mode = _PIXELS[kind]
    pixels = {"mean": mean, "std": std, "interpolation": interpolation, "resize_mode": mode}
    content = json.dumps({"model_cfg": config, "preprocess_cfg": pixels})
    (folder / "open_clip_config.json").write_text(content, encoding="utf-8")
    return folder
