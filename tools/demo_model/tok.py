# SPDX-License-Identifier: Apache-2.0
"""Byte-level BPE tokenizer with exactly the structure of Qwen3's tokenizer.json."""
from __future__ import annotations

import json
import random
from pathlib import Path

import corpus
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ("endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end "
           "vision_start vision_end vision_pad image_pad video_pad").split()
PLAIN = ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
         "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def sample_texts(seed: int, n: int):
    rng = random.Random(f"tokenizer-{seed}")
    for i in range(n):
        if i % 3 == 0:
            yield corpus.recall(rng, 256, rng.randint(2, 10), rng.random())
        else:
            yield corpus.dialogue(rng) if i % 3 == 1 else corpus.prose(rng)
    for key in corpus.KEYS:  # every key is a common phrase
        for _ in range(8):
            yield f"The code of the {key[0]} {key[1]} is\n"


def train_tokenizer(seed: int, vocab_size: int, docs: int = 12000) -> Tokenizer:
    added = [f"<|{s}|>" for s in SPECIAL] + PLAIN
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    t.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    t.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)

    def texts():
        for s in sample_texts(seed, docs):
            for a in added:
                s = s.replace(a, "")
            yield s

    t.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=vocab_size - len(added), min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.add_special_tokens([AddedToken(f"<|{s}|>", special=True, normalized=False) for s in SPECIAL])
    t.add_tokens([AddedToken(s, special=False, normalized=False) for s in PLAIN])
    assert t.get_vocab_size() == vocab_size, t.get_vocab_size()
    return t


def save_tokenizer(t: Tokenizer, out: Path, template: str, max_len: int):
    out.mkdir(parents=True, exist_ok=True)
    data = json.loads(t.to_str())
    data["decoder"] = dict(data["post_processor"])  # the same fields as in Qwen3's file
    data["model"]["continuing_subword_prefix"] = data["model"]["end_of_word_suffix"] = ""
    (out / "tokenizer.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    added = data["added_tokens"]
    cfg = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(a["id"]): {k: a[k] for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
                                 for a in added},
        "additional_special_tokens": [f"<|{s}|>" for s in SPECIAL[1:]],
        "bos_token": None,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": max_len,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(cfg, indent=2, ensure_ascii=False) + "\n")
