#!/usr/bin/env python3
"""Writes tests/data/rope_goldens.json: cos/sin tables and frequencies of Transformers for every rope type.

Needs torch and transformers (made with torch 2.13.0 and transformers 5.23.0); the test needs only the file.
Floats are written with 9 significant digits, which identify a float32.

    python tests/make_rope_goldens.py
"""

import json
import pathlib

import torch
import transformers
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRotaryEmbedding

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}

# name, keys of config.json (rope, head_dim, max_position_embeddings), length of the sequence
CASES = [
    ("default, theta 1e6", dict(rope_theta=1e6), 40960),
    ("default, theta 1e7", dict(rope_theta=1e7, max_position_embeddings=262144), 262144),
    ("default, no key at all", dict(), 4096),
    ("default, odd theta, head_dim 96", dict(rope_theta=123456.789, head_dim=96), 4096),
    ("linear, old spelling", dict(rope_theta=1e6, rope_scaling={"type": "linear", "factor": 2.5}), 81920),
    ("dynamic, below the limit", dict(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}), 1000),
    ("dynamic, at the limit", dict(rope_theta=1e6, rope_scaling={"rope_type": "dynamic", "factor": 3.7}), 40960),
    ("dynamic, beyond", dict(rope_theta=1e6, rope_scaling={"rope_type": "dynamic", "factor": 2.0}), 81920),
    ("dynamic, far beyond, odd length", dict(rope_theta=1e7, rope_scaling={"rope_type": "dynamic", "factor": 3.7}), 262143),
    ("dynamic, head_dim 4", dict(rope_theta=1e4, head_dim=4, rope_scaling={"rope_type": "dynamic", "factor": 4}), 99999),
    ("yarn, the card of Qwen3", dict(rope_theta=1e6, rope_scaling=YARN), 131072),
    ("yarn, new spelling", dict(rope_parameters={**YARN, "rope_theta": 1e6, "factor": 2.0}), 65536),
    ("yarn, original length absent", dict(rope_theta=1e6, rope_scaling={"type": "yarn", "factor": 4.0}), 131072),
    ("yarn, original length beside", dict(rope_theta=1e6, rope_scaling=YARN, original_max_position_embeddings=20000), 80000),
    ("yarn, factor null", dict(max_position_embeddings=131072, rope_scaling={**YARN, "factor": None}), 131072),
    ("yarn, attention factor", dict(rope_theta=1e6, rope_scaling={**YARN, "attention_factor": 0.9}), 131072),
    ("yarn, betas", dict(rope_theta=1e6, rope_scaling={**YARN, "beta_fast": 16, "beta_slow": 2.5}), 131072),
    ("yarn, betas zero", dict(rope_theta=1e6, rope_scaling={**YARN, "beta_fast": 0, "beta_slow": 0}), 131072),
    ("yarn, not truncated", dict(rope_theta=1e6, rope_scaling={**YARN, "truncate": False}), 131072),
    ("yarn, truncate null", dict(rope_theta=1e6, rope_scaling={**YARN, "truncate": None}), 131072),
    ("yarn, mscale", dict(rope_theta=1e6, rope_scaling={**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}), 131072),
    ("yarn, mscale zero", dict(rope_theta=1e6, rope_scaling={**YARN, "mscale": 0.0, "mscale_all_dim": 1.3}), 131072),
    ("yarn, tiny head and length", dict(rope_theta=10000.0, head_dim=8, max_position_embeddings=256,
                                        rope_scaling={**YARN, "original_max_position_embeddings": 64}), 256),
    ("yarn, factor 1", dict(rope_theta=1e6, rope_scaling={**YARN, "factor": 1.0}), 32768),
    ("both spellings: rope_scaling wins", dict(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0},
                                               rope_parameters={**YARN, "rope_theta": 1e6}), 40960),
]


def numbers(values):
    return [float(f"{v:.9g}") for v in values]


def main():
    cases = []
    for name, keys, length in CASES:
        keys = {"head_dim": 128, "max_position_embeddings": 40960, **keys}
        # through JSON: Transformers changes the dictionaries it is given
        config = Qwen3MoeConfig.from_dict(json.loads(json.dumps({"model_type": "qwen3_moe", **keys})))
        rotary = Qwen3MoeRotaryEmbedding(config)
        # The first call fixes what depends on the length (dynamic), as one forward pass over the sequence does.
        rotary(torch.zeros(1), torch.arange(length)[None])
        frequencies = rotary.inv_freq
        positions = sorted({0, 1, 7, 1023, length // 3, length - 1})
        # The last position is among them, so the frequencies stay those of the whole sequence.
        cos, sin = rotary(torch.zeros(1), torch.tensor(positions)[None])
        half = keys["head_dim"] // 2
        # A few pairs of each row keep the file small; the frequencies are all there.
        pairs = sorted({0, 1, 2, half // 4, half // 3, half // 2, half - 1} & set(range(half)))
        cases.append({
            "name": name,
            "config": {"architectures": ["Qwen3MoeForCausalLM"], **keys},
            "sequence_length": length,
            "attention_scaling": float(rotary.attention_scaling),
            "inv_freq": numbers(frequencies.tolist()),
            "positions": positions,
            "pairs": pairs,
            "cos": [numbers(cos[0, i, pairs].tolist()) for i in range(len(positions))],
            "sin": [numbers(sin[0, i, pairs].tolist()) for i in range(len(positions))],
        })
    out = {"made_with": f"torch {torch.__version__}, transformers {transformers.__version__}", "cases": cases}
    path = pathlib.Path(__file__).parent / "data" / "rope_goldens.json"
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(f'{{"made_with": {json.dumps(out["made_with"])}, "cases": [\n{lines}\n]}}\n')
    print(f"{path}: {len(cases)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
