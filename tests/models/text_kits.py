"""Small tokenizers and text encoders of the kinds that models of open_clip's take from the hub."""

from __future__ import annotations

from pathlib import Path

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
