#!/usr/bin/env python3
"""Makes tests/data/goldens: tiny random Qwen3 checkpoints with reference logits.

For every case it writes a Hugging Face checkpoint with random weights, runs it once over a fixed
token sequence with Hugging Face Transformers in float32 (from the weights rounded to bf16) and in
bfloat16, and stores what the C++ tests compare with. The format is in tests/data/README.md.

  make_goldens.py                 write all cases to tests/data/goldens
  make_goldens.py --emulate       also predict the engine's error by emulating its rounding points
  make_goldens.py --check         recompute and compare with what is committed; write nothing
  make_goldens.py --only a,b      only these cases (cases.json is then left alone)

Needs torch, transformers, safetensors, numpy. Deterministic: one thread, seeded generators.
"""

import argparse
import copy
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from golden_cases import BY_NAME, CASES, rope
from golden_emulation import emulate, nearest, stochastic

transformers.utils.logging.disable_progress_bar()

GOLDENS = pathlib.Path(__file__).resolve().parent / "data" / "goldens"
TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
STOCHASTIC_DRAWS = 16
# Distances from a tie that choose_tokens asks for. Both kinds of logits have a standard deviation
# of about 2.5; the rounding error of a router logit is smaller, since fewer layers precede it.
ROUTER_MARGIN, LEAD_MARGIN = 0.1, 0.2


# ---------------------------------------------------------------------------------------- writing

def random_weights(case):
    """Float32 tensors under the names published Qwen3 checkpoints use.

    Gains are such that attention is neither flat nor one-hot, every branch changes the residual by
    about its own size, and the most probable token has a probability of some tenths.
    """
    c, generator = case.config, torch.Generator().manual_seed(seed_of(case))
    scale = {"embed": 0.5, "branch": 0.8, "qk": 1.0, "expert": 1.0, **case.scales}
    weights = {}

    def normal(name, *shape, std, mean=0.0):
        weights[name] = torch.randn(*shape, generator=generator) * std + mean

    def linear(name, rows, columns, gain):
        normal(name + ".weight", rows, columns, std=gain / math.sqrt(columns))

    def mlp(prefix, intermediate, gain):
        linear(prefix + ".gate_proj", intermediate, h, 1.5)
        linear(prefix + ".up_proj", intermediate, h, 1.2)
        linear(prefix + ".down_proj", h, intermediate, gain)

    h, d = c["hidden_size"], c["head_dim"]
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    normal("model.embed_tokens.weight", c["vocab_size"], h, std=scale["embed"])
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        normal(p + "input_layernorm.weight", h, std=0.2, mean=1.0)
        normal(p + "post_attention_layernorm.weight", h, std=0.2, mean=1.0)
        # The query norm above 1 sharpens attention, so that positions matter.
        normal(p + "self_attn.q_norm.weight", d, std=0.3, mean=1.6)
        normal(p + "self_attn.k_norm.weight", d, std=0.2, mean=1.0)
        for name, rows, columns, gain in (("q", heads * d, h, scale["qk"]),
                                          ("k", kv_heads * d, h, scale["qk"]),
                                          ("v", kv_heads * d, h, 1.0),
                                          ("o", h, heads * d, 2.0 * scale["branch"])):
            linear(f"{p}self_attn.{name}_proj", rows, columns, gain)
            if c["attention_bias"]:
                normal(f"{p}self_attn.{name}_proj.bias", rows, std=0.4)
        sparse = (c.get("num_experts", 0) > 0 and layer not in c["mlp_only_layers"]
                  and (layer + 1) % c["decoder_sparse_step"] == 0)
        if not sparse:
            mlp(p + "mlp", c["intermediate_size"], 1.5 * scale["branch"])
            continue
        linear(p + "mlp.gate", c["num_experts"], h, 2.5)
        for expert in range(c["num_experts"]):
            mlp(f"{p}mlp.experts.{expert}", c["moe_intermediate_size"],
                1.5 * scale["branch"] * scale["expert"])
    normal("model.norm.weight", h, std=0.2, mean=1.0)
    if not c["tie_word_embeddings"]:
        linear("lm_head", c["vocab_size"], h, 2.2)
    return weights


def seed_of(case):
    """A fixed seed by name: nobody picked it, and adding a case changes no other."""
    return zlib.crc32((case.checkpoint or case.name).encode())


def config_json(case):
    config = copy.deepcopy(case.config)
    if case.spelling == "old":
        return {**config, "torch_dtype": case.dtype, "transformers_version": "4.51.0"}
    theta, scaling = config.pop("rope_theta"), config.pop("rope_scaling")
    if case.spelling == "bare":
        for key in ("head_dim", "norm_topk_prob", "rms_norm_eps", "tie_word_embeddings"):
            del config[key]
        return {**config, "dtype": case.dtype}
    config["rope_parameters"] = {"rope_theta": theta, **(scaling or rope("default"))}
    architectures = config.pop("architectures")
    made = AutoConfig.for_model(**config, dtype=case.dtype)
    made.architectures = architectures
    return json.loads(made.to_json_string(use_diff=True))


def write_json(path, value):
    """Indented JSON with lists of numbers on one line."""
    text = json.dumps(value, indent=1, sort_keys=True)
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda m: re.sub(r"\s+", "", m[0]), text)
    path.write_text(text + "\n")


def write_checkpoint(case, directory, tensors):
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config_json(case))
    if case.shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    # Deal the names out in turn: the tensors of one layer lie in different files.
    names, weight_map = sorted(tensors), {}
    for shard in range(case.shards):
        file = f"model-{shard + 1:05d}-of-{case.shards:05d}.safetensors"
        part = names[shard::case.shards]
        save_file({n: tensors[n] for n in part}, directory / file, metadata={"format": "pt"})
        weight_map.update({n: file for n in part})
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(directory / "model.safetensors.index.json",
               {"metadata": {"total_size": size}, "weight_map": weight_map})
    write_json(directory / "generation_config.json",
               {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
                "eos_token_id": [0, 1], "transformers_version": "4.51.0"})


# -------------------------------------------------------------------------------------- reference

def load_model(directory, dtype, changes):
    config = AutoConfig.from_pretrained(directory)
    for key, value in changes.items():
        setattr(config, key, value)
    # from_pretrained, not model.to(bfloat16): the latter would round the rotary frequencies too,
    # and make bfloat16 look worse than it is.
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=dtype, attn_implementation="eager",
        experts_implementation="eager", output_loading_info=True)
    if "attention_bias" not in changes:
        assert not any(info.values()), (directory, info)
    return model.eval()


def run_model(model, tokens, positions):
    with torch.no_grad():
        return model(torch.tensor(tokens)[None], use_cache=False).logits[0][positions]


def choose_tokens(model, case, vocab, positions):
    """Random token ids on which the float32 reference takes no decision by a hair.

    A router margin or a lead of the most probable token that is smaller than rounding noise makes
    the outcome of *any* bf16 arithmetic a coin toss, and one toss can outweigh everything else in
    a case this small. So tokens at whose position the float32 model is within the margins of a
    tie are drawn again until none is left. Neither bfloat16 nor the engine has a say in it.
    """
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    # The ends of the vocabulary come five times as often as other ids: most cases have both.
    draw = lambda count: np.clip(rng.integers(-4, vocab + 4, count), 0, vocab - 1)
    tokens = draw(case.tokens)
    experts = getattr(model.config, "num_experts", 0)
    scored = torch.zeros(case.tokens, dtype=torch.bool)
    scored[positions] = True
    for _ in range(2000 if case.settled else 0):
        with torch.no_grad():
            out = model(torch.tensor(tokens)[None], use_cache=False,
                        **({"output_router_logits": True} if experts else {}))
        lead = out.logits[0].topk(2).values
        tied = (lead[:, 0] - lead[:, 1] < LEAD_MARGIN) & scored
        chosen = getattr(model.config, "num_experts_per_tok", 0)
        if chosen < experts:
            for layer in out.router_logits:
                ranked = layer.sort(-1, descending=True).values
                tied |= ranked[:, chosen - 1] - ranked[:, chosen] < ROUTER_MARGIN
        if not tied.any():
            break
        tokens[tied.numpy()] = draw(int(tied.sum()))
    else:
        assert not case.settled, f"{case.name}: no settled input found"
    return tokens.tolist()


def divergence(reference, logits):
    """Mean over positions of KL(softmax(reference) || softmax(logits)), computed in float64."""
    p = torch.log_softmax(reference.double(), -1)
    q = torch.log_softmax(logits.double(), -1)
    return ((p.exp() * (p - q)).sum(-1)).mean().item()


def agreement(reference, logits):
    return (reference.argmax(-1) == logits.argmax(-1)).double().mean().item()


# ------------------------------------------------------------------------------------------ cases

def make_case(case, root, scratch, with_emulation):
    """Writes one case below `root` and returns its row of the table."""
    owner = BY_NAME[case.checkpoint or case.name]
    directory = root / case.name
    directory.mkdir(parents=True, exist_ok=True)
    stored = {n: t.to(TORCH_DTYPES[owner.dtype]) for n, t in random_weights(owner).items()}
    if owner is case:
        write_checkpoint(case, directory, stored)
    source = scratch / case.name  # the same model, weights rounded to bf16, in one file
    bf16 = {n: t.bfloat16() for n, t in stored.items()}
    write_checkpoint(dataclasses.replace(owner, shards=1), source, bf16)

    vocab = owner.config["vocab_size"]
    positions = sorted(set(case.positions or range(case.tokens)))
    changes = {} if case.experts is None else {"num_experts_per_tok": case.experts}

    model = load_model(source, torch.float32, changes)
    tokens = choose_tokens(model, case, vocab, positions)
    reference = run_model(model, tokens, positions)
    half = run_model(load_model(source, torch.bfloat16, changes), tokens, positions)
    double = run_model(load_model(source, torch.float32, changes).double(), tokens, positions)
    mutants = {name: divergence(reference, run_model(
        load_model(source, torch.float32, {**changes, **change}), tokens, positions))
        for name, change in case.mutants.items()}

    np.array(tokens, "<i4").tofile(directory / "tokens.i32")
    reference.numpy().astype("<f4").tofile(directory / "logits_f32.f32")
    golden = {
        "tokens": len(tokens), "positions": positions, "vocab": vocab, "experts": case.experts,
        "kl_bf16_mean": divergence(reference, half), "kl_f64_mean": divergence(double, reference),
        "top1_f32": reference.argmax(-1).tolist(), "top1_bf16": half.argmax(-1).tolist(),
        "top1_bf16_agreement": agreement(reference, half), "kl_mutants": mutants,
        "seed": seed_of(case), "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    write_json(directory / "golden.json", golden)

    row = {"case": case.name, "kl_bf16": golden["kl_bf16_mean"],
           "top1_bf16": golden["top1_bf16_agreement"], "kl_f64": golden["kl_f64_mean"],
           "top_probability": torch.softmax(reference, -1).amax(-1).mean().item(),
           "mutants": mutants,
           "bytes": sum(f.stat().st_size for f in directory.iterdir())}
    if with_emulation:
        run = lambda rounding, dtype=torch.float32: emulate(
            model, {n: t.float() for n, t in bf16.items()}, tokens, positions, rounding, dtype)
        exact = run(lambda x: x, torch.float64)
        emulated = run(nearest)
        draws = [run(stochastic(torch.Generator().manual_seed(s))) for s in range(STOCHASTIC_DRAWS)]
        row.update(kl_exact=divergence(exact, reference),
                   kl_emulated=divergence(reference, emulated),
                   top1_emulated=agreement(reference, emulated),
                   kl_worst_draw=max(divergence(reference, x) for x in draws),
                   draws_below=sum(divergence(reference, x) <= row["kl_bf16"] for x in draws),
                   draws_top1=sum(agreement(reference, x) >= row["top1_bf16"] for x in draws))
    return row


def complaints(row):
    """What would make the case worthless as a test."""
    if row["kl_f64"] > 1e-9 or row.get("kl_exact", 0.0) > 1e-9:
        yield "float64 differs from float32: the float32 reference is not settled"
    if row["kl_bf16"] < 1e-6:
        yield "bfloat16 is too close to float32 to be a bound"
    for name, kl in row["mutants"].items():
        if kl < 3 * row["kl_bf16"]:
            yield f"'{name}' is not told from the right reading: KL {kl:.1e}"
    if row.get("kl_emulated", 0.0) > row["kl_bf16"]:
        yield "the emulated engine is farther from float32 than bfloat16 is"
    if row.get("top1_emulated", 1.0) < row["top1_bf16"]:
        yield "the emulated engine agrees on fewer most probable tokens than bfloat16 does"


def print_row(row):
    print(f"{row['case']:22s} {row['bytes'] / 1024:6.1f} KiB  bf16 KL {row['kl_bf16']:.2e} top1 "
          f"{row['top1_bf16']:.4f}  f64 {row['kl_f64']:.0e}  p {row['top_probability']:.2f}",
          end="")
    if "kl_emulated" in row:
        print(f"  emulated KL {row['kl_emulated']:.2e} top1 {row['top1_emulated']:.4f}  exact "
              f"{row['kl_exact']:.0e}  draws: worst {row['kl_worst_draw']:.2e}, KL "
              f"{row['draws_below']}/{STOCHASTIC_DRAWS}, top1 {row['draws_top1']}/"
              f"{STOCHASTIC_DRAWS}", end="")
    print("".join(f"  [{name} {kl:.1e}]" for name, kl in row["mutants"].items()), flush=True)


def cases_json():
    return [{"name": case.name, "covers": case.covers, "checkpoint": case.checkpoint or case.name,
             "experts": case.experts, "token_count": case.tokens,
             "tokens": f"{case.name}/tokens.i32", "logits": f"{case.name}/logits_f32.f32",
             "golden": f"{case.name}/golden.json", "settled": case.settled} for case in CASES]


def differences(made, committed):
    """Files that differ: bytes for checkpoints and tokens, a tolerance for computed numbers."""
    for path in sorted(p for p in made.rglob("*") if p.is_file()):
        name = path.relative_to(made)
        other = committed / name
        if not other.exists():
            yield f"{name}: not committed"
        elif path.suffix == ".f32":
            a, b = np.fromfile(path, "<f4"), np.fromfile(other, "<f4")
            if a.shape != b.shape or np.abs(a - b).max() > 1e-3:
                yield f"{name}: logits differ by more than 1e-3"
        elif path.name == "golden.json":
            a, b = (json.loads(p.read_text()) for p in (path, other))
            if not 0.5 < a["kl_bf16_mean"] / b["kl_bf16_mean"] < 2:
                yield f"{name}: kl_bf16_mean differs by more than a factor of 2"
            for key in ("tokens", "positions", "vocab", "experts", "seed", "top1_f32"):
                if a[key] != b[key]:
                    yield f"{name}: '{key}' differs"
        elif path.read_bytes() != other.read_bytes():
            yield f"{name}: bytes differ"
    for path in sorted(p for p in committed.rglob("*") if p.is_file()):
        if not (made / path.relative_to(committed)).exists():
            yield f"{path.relative_to(committed)}: committed, but no case makes it"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulate", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=pathlib.Path, default=GOLDENS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [BY_NAME[name] for name in options.only.split(",") if name] or CASES
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        scratch = pathlib.Path(temporary)
        out = scratch / "made" if options.check else options.out
        if out.exists() and chosen is CASES:
            shutil.rmtree(out)
        for case in chosen:
            row = make_case(case, out, scratch / "models", options.emulate)
            print_row(row)
            problems += [f"{case.name}: {text}" for text in complaints(row)]
        if chosen is CASES:
            write_json(out / "cases.json", cases_json())
            if options.check:
                problems += differences(out, options.out)
    for text in problems:
        print("PROBLEM", text)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
