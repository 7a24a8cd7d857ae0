# SPDX-License-Identifier: Apache-2.0
"""Measure an exported demo model with Transformers.

    python evaluate.py ../../models/demo --json evaluation.json

Reports the loss on held-out generated text (fp32 and bf16), the recall of one
code by context length and number of facts, the agreement of the training-time
forward pass with Transformers, and sample outputs.
"""
from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import corpus
import torch
import torch._dynamo
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["Tell me about the lighthouse.", "Tell me about a fox.", "Write a short story about a lighthouse keeper.",
           "Tell me a story about a baker and an owl.", "What does a squirrel eat?", "Who are you?",
           "The code of the red lamp is 4821. The code of the blue chair is 1973. What is the code of the red lamp?"]


@torch.no_grad()
def text_loss(model, tok, n=64, length=256):
    total, count = 0.0, 0
    for i in range(0, n, 8):
        rows = []
        for j in range(i, i + 8):
            rng, s = random.Random(f"held-out-text-{j}"), ""
            while len(s) < length * 5:
                s += (corpus.dialogue(rng) if rng.random() < 0.7 else corpus.prose(rng)) + corpus.EOT
            rows.append(tok(s).input_ids[:length + 1])
        x = torch.tensor(rows)
        lg = model(input_ids=x[:, :-1]).logits.float()
        total += F.cross_entropy(lg.flatten(0, 1), x[:, 1:].flatten(), reduction="sum").item()
        count += x[:, 1:].numel()
    return total / count


@torch.no_grad()
def recall(model, tok, length, n_facts, in_chat, n, unseen=False):
    """Shares of prompts answered with the right code, and with the whole expected sentence.

    One forward pass over prompt and expected answer: a greedy decoder gives the
    answer exactly if every token of it is the most likely one.
    """
    code = whole = 0
    per = max(1, 4096 // length)
    for i in range(0, n, per):
        rows, spans = [], []
        for j in range(i, min(n, i + per)):
            rng = random.Random(f"held-out-recall-{length}-{n_facts}-{in_chat}-{unseen}-{j}")
            prompt, f = corpus.recall_prompt(rng, lambda s: len(tok(s).input_ids), length - 20, n_facts, in_chat, unseen)
            a = tok(prompt).input_ids
            b = tok(("" if in_chat else " ") + corpus.answer(f)).input_ids
            rows.append(a + b)
            spans.append((len(a), len(b)))
        width = max(map(len, rows))
        x = torch.tensor([r + [0] * (width - len(r)) for r in rows])  # padding comes after, so it changes nothing
        pred = model(input_ids=x).logits.argmax(-1)
        for r, (a, b) in enumerate(spans):
            hit = pred[r, a - 1:a + b - 1] == x[r, a:a + b]
            code += bool(hit[-5:-1].all())
            whole += bool(hit.all())
    return code / n, whole / n


@torch.no_grad()
def agreement(hf, tok, path):
    """Training-time forward against Transformers in fp32, on the same bf16 weights."""
    from model import Config, Model
    from safetensors.torch import load_file
    state, c = load_file(Path(path) / "model.safetensors"), Config.load(Path(path) / "config.json")
    m = Model(c)
    names = {k: v for k, v in m.hf_views().items()}
    for k, v in names.items():
        v.copy_(state[k].float())
    rng = random.Random("agreement")
    ids = torch.tensor([tok(corpus.dialogue(rng) * 40).input_ids[:256] for _ in range(16)])
    x, _, _ = m.hidden(ids)
    xf = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps) * m.norm
    ours = F.linear(xf, m.embed).log_softmax(-1)
    ref = hf(input_ids=ids).logits.flatten(0, 1).float().log_softmax(-1)
    kl = (ref.exp() * (ref - ours)).sum(-1).mean().item()
    return dict(mean_abs_logprob_of_top=(ref.max(-1).values - ours.gather(1, ref.argmax(-1, keepdim=True)).squeeze(1)).abs().mean().item(),
                kl=kl, same_top=(ref.argmax(-1) == ours.argmax(-1)).float().mean().item())


@torch.no_grad()
def samples(model, tok, seed=1):
    out = []
    for i, q in enumerate(PROMPTS):
        for thinking in (False, True):
            if thinking and i not in (0, len(PROMPTS) - 1):
                continue
            x = tok.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, enable_thinking=thinking,
                                        return_tensors="pt", return_dict=True)
            n = x["input_ids"].shape[1]
            row = dict(prompt=q, thinking=thinking)
            for mode in ("greedy", "sampled") if i in (0, 2) and not thinking else ("greedy",):
                torch.manual_seed(seed)
                y = model.generate(**x, max_new_tokens=220, do_sample=mode == "sampled")
                row[mode] = tok.decode(y[0, n:])
            out.append(row)
    return out


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("model")
    ap.add_argument("--json", type=Path)
    ap.add_argument("--n", type=int, default=48, help="recall prompts per cell (fewer above 640 tokens, in proportion)")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--quick", action="store_true")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    torch._dynamo.config.disable = True
    tok = AutoTokenizer.from_pretrained(a.model)
    fp32 = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32).eval()
    bf16 = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.bfloat16).eval()
    res: dict = dict(parameters=sum(p.numel() for p in fp32.parameters()))
    for name, m in (("fp32", fp32), ("bf16", bf16)):
        loss = text_loss(m, tok, 16 if a.quick else 64)
        res["loss_" + name] = loss
        print(f"{name}: loss {loss:.4f}, perplexity {2.718281828 ** loss:.3f}", flush=True)
    res["agreement"] = agreement(fp32, tok, a.model)
    print("training-time forward against Transformers fp32:", res["agreement"], flush=True)
    res["samples"] = samples(fp32, tok)
    for s in res["samples"]:
        print(f"--- {s['prompt']} (thinking {'on' if s['thinking'] else 'off'})", flush=True)
        print("\n".join(f"{k}: {s[k]}" for k in ("greedy", "sampled") if k in s), flush=True)
    res["recall"] = []
    t0 = time.time()
    for length in (128, 256, 512, 1024, 2048, 4096):
        if a.quick and length > 256:
            break
        n = max(4, int(a.n * min(1.0, 640 / length)) // (8 if a.quick else 1))
        for n_facts in ((2, 4) if length == 128 else (2, 8) if length == 256 else (4, 16)):
            row = dict(length=length, facts=n_facts, n=n)
            for key, chat, unseen in (("chat", True, False), ("plain", False, False), ("chat_unseen_keys", True, True)):
                if not unseen or n_facts <= 4:
                    row[key], row[key + "_whole"] = recall(fp32, tok, length, n_facts, chat, n, unseen)
            if length <= 512 and n_facts <= 4:
                row["chat_bf16"], _ = recall(bf16, tok, length, n_facts, True, n)
            res["recall"].append(row)
            print(row, f"{time.time() - t0:.0f} s", flush=True)
            if a.json:
                a.json.write_text(json.dumps(res, indent=1, ensure_ascii=False) + "\n")
    if a.json:
        a.json.write_text(json.dumps(res, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
