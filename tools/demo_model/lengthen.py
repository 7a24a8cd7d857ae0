# SPDX-License-Identifier: Apache-2.0
"""Train an exported demo model further on contexts of up to 262,144 tokens, on one GPU.

    python lengthen.py --model ../../models/demo --out run-long --seconds 420
    python lengthen.py --model ../../models/demo --out run-long --seconds 3 --tiny    # smoke test on a CPU

The base of RoPE is raised first, since with 100,000 even the slowest of the 32 pairs
of a head turns by 1.9 radians over 131,072 tokens: then nothing in a head can tell
what a token is wherever it stands. Training goes on with short
documents at the new base, and then the length grows as the answers come out right.
Every step has a part of short documents (as in train.py) and a long part.

Same arithmetic as model.py, but all experts are computed for all tokens and those
not chosen weigh zero: one dense product, which on a GPU is faster than to sort.
"""
from __future__ import annotations

import argparse
import csv
import json
import multiprocessing as mp
import os
import queue
import random
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import corpus  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from model import Config, Model, Muon, install_offset_heads, optimizers, rms_norm, rotate  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from recall_eval import size  # noqa: E402
from train import Batcher, export, recall_only, text_only  # noqa: E402

# (length, share of the time at most); the next one starts earlier if the answers come out right
STAGES = [(4096, 0.03), (8192, 0.03), (16384, 0.03), (32768, 0.08), (65536, 0.13), (131072, 0.3), (262144, 1.0)]
READY = 0.97  # share of first digits of codes that are right, for the next stage
FIRST, OTHER, SAID = 1, 2, 3  # kinds of token in a long document: digits asked for, rest of the answer


# ------------------------------------------------------------------ documents

def long_document(rng: random.Random, tok: Tokenizer, length: int, digits: np.ndarray):
    """(ids, kinds, weights) of length + 1 tokens: prose with facts, and questions for them at the end or also in between.

    Most sequences ask for dozens of facts, since every question teaches.
    """
    n_facts = int(2 ** (rng.uniform(4.5, 6.5) if rng.random() < 0.75 else rng.uniform(1, 4.5)))
    n_facts = min(n_facts, max(2, length // 128))
    facts = corpus.make_facts(rng, n_facts)
    in_chat = rng.random() < 0.75
    blocks = rng.choice([1, 1, 1, 2, 3])
    n_q = min(max(n_facts, 4), 80)
    tail = n_q * 46 + 64
    room = length + 1 - tail - 24 * n_facts
    body = corpus.filler(rng, max(40, int(room / 1.1)))
    sizes = np.cumsum([len(e.ids) for e in tok.encode_batch([" " + s for s in body])])
    body = body[:int(np.searchsorted(sizes, room))]
    spots = [0.0 if (r := rng.random()) < 0.08 else 1.0 if r < 0.16 else rng.random() for _ in facts]
    order = sorted(range(n_facts), key=lambda j: spots[j])
    pieces, kinds = [], []  # text and whether it is an answer

    def add(text, answer=False):
        pieces.append(text)
        kinds.append(answer)

    done, told = 0, []
    broken = rng.random() < 0.25  # paragraphs
    for b in range(blocks):
        end = len(body) if b == blocks - 1 else int(len(body) * (b + rng.uniform(0.6, 1.0)) / blocks)
        if not told and not any(spots[j] * len(body) <= end for j in order):
            spots[order[0]] = max(0.0, (end - 0.5) / max(1, len(body)))
        last = [j for j in order if j not in told and (b == blocks - 1 or spots[j] * len(body) <= end)]
        sentences, k = [], 0
        for i in range(done, end + 1):
            while k < len(last) and spots[last[k]] * len(body) <= i:
                sentences.append(corpus.statement(rng, facts[last[k]]))
                k += 1
            if i < end:
                sentences.append(body[i])
        told, done = told + last, end
        if in_chat:
            add(f"{corpus.IM_START}user\n")
        elif b:
            pieces[-1] += "\n"
        gap = bool(b) and not in_chat
        for i, s in enumerate(sentences):
            # a piece begins with the blank before it, so that it is tokenized as within the whole
            add(s if gap or (i == 0 and (in_chat or not pieces)) else " " + s)
            gap = broken and i + 1 < len(sentences) and rng.random() < 0.2
            if gap:
                pieces[-1] += "\n\n"
        qs = [rng.choice(told) for _ in range(n_q // blocks - len(told))] + (told if len(told) <= n_q // blocks else rng.sample(told, n_q // blocks))
        rng.shuffle(qs)
        join = rng.choice([" ", " ", " ", "\n", "\n\n"])
        form = rng.randrange(4)
        for i, j in enumerate(qs):
            q, a = corpus.question(rng, facts[j], plain=rng.random() < 0.5), corpus.answer(facts[j])
            if in_chat:
                if i == 0 and pieces[-1][-1] != "\n":
                    pieces[-1] += join + q if join != " " else " " + q
                elif i == 0:
                    pieces[-1] += q
                else:
                    add(f"{corpus.IM_START}user\n{q}")
                think = corpus.THINK if rng.random() < 0.6 else ""
                add(f"{corpus.IM_END}\n{corpus.IM_START}assistant\n{think}")
                add(a, True)
                add(f"{corpus.IM_END}\n")
            else:
                lead, mid = [(" ", " "), ("Question: ", "\nAnswer:"), ("Q: ", "\nA:"), ("", "\n")][form]
                if form and pieces[-1][-1] != "\n":  # a line break is one token with the stop before it
                    pieces[-1] += "\n"
                q = lead + q + mid
                # what the answer begins with belongs to it where it is a blank
                if q[-1] == " ":
                    add(q[:-1])
                    add(" " + a, True)
                elif q[-1] == ":":
                    add(q)
                    add(" " + a, True)
                else:
                    add(q)
                    add(a, True)
    add(corpus.EOT)
    enc = tok.encode_batch(pieces)
    ids = np.concatenate([np.asarray(e.ids, np.int64) for e in enc])
    is_answer = np.concatenate([np.full(len(e.ids), k, bool) for e, k in zip(enc, kinds)])
    is_digit = digits[ids]
    first = is_digit & ~np.concatenate([[False], is_digit[:-1]])
    kind = np.where(is_answer, np.where(is_digit, np.where(first, FIRST, OTHER), SAID), 0).astype(np.uint8)
    weight = np.where(is_answer, 0.0, np.where(is_digit, 0.05, 1.0)).astype(np.float32)
    return ids[:length + 1], kind[:length + 1], weight[:length + 1]


def long_batch(rng, tok, length, rows, digits, eot):
    ids = np.full((rows, length + 1), eot, np.uint16)
    kind = np.zeros((rows, length + 1), np.uint8)
    weight = np.zeros((rows, length + 1), np.float16)
    for r in range(rows):
        i, k, w = long_document(rng, tok, length, digits)
        ids[r, :len(i)], kind[r, :len(i)], weight[r, :len(i)] = i, k, w
    return ids[:, :-1].copy(), ids[:, 1:].copy(), weight[:, 1:].ravel(), kind[:, 1:].ravel()


def worker(index, seed, path, short_q, long_q, stage, sizes, stop):
    torch.set_num_threads(1)
    os.nice(5)
    tok = Tokenizer.from_file(path)
    batcher = Batcher(tok, seed, sizes["short"])
    n = 0
    while not stop.value:
        rng, n = random.Random(f"{seed}-{index}-{n}"), n + 1
        try:
            if short_q.qsize() < long_q.qsize():
                length = rng.choices(sizes["short_lengths"], sizes["short_shares"])[0]
                x, y, w, ans = batcher.batch(f"long-{index}-{n}", 1.0, 4, length)
                short_q.put((length, x.numpy().astype(np.uint16), y.numpy().astype(np.uint16), w.numpy(), ans.numpy().astype(np.uint8)), timeout=1)
            else:
                at = stage.value
                k = at if at == 0 or rng.random() < 0.7 else rng.randrange(max(0, at - 3), at)
                if at and at == len(sizes["long"]) - 1:  # the longest one costs four times as much
                    k = rng.choices([at, at - 1, at - 2, at - 3], [0.3, 0.45, 0.15, 0.1])[0]
                length, tokens = sizes["long"][k]
                item = (length, *long_batch(rng, tok, length, max(1, tokens // length), batcher.digit, batcher.eot))
                while not stop.value:
                    try:
                        long_q.put(item, timeout=1)
                        break
                    except queue.Full:
                        if stage.value != at:
                            break
        except queue.Full:
            pass
    short_q.cancel_join_thread()
    long_q.cancel_join_thread()


# ----------------------------------------------------------------------- model

def before_attention(x, cos, sin, ln, wq, wk, wv, qn, kn, head_dim: int, eps: float):
    dt, n = torch.bfloat16, x.shape[0]
    h = rms_norm(x, ln, eps).to(dt)
    q = rms_norm(F.linear(h, wq.to(dt)).view(n, -1, head_dim).float(), qn, eps)
    k = rms_norm(F.linear(h, wk.to(dt)).view(n, -1, head_dim).float(), kn, eps)
    return rotate(q, cos, sin).to(dt), rotate(k, cos, sin).to(dt), F.linear(h, wv.to(dt)).view(n, -1, head_dim)


def after_attention(x, a, wo, ln, router, gate_up, down, topk: int, eps: float):
    dt = torch.bfloat16
    e, i2, d = gate_up.shape
    x = x + F.linear(a, wo.to(dt))
    h = rms_norm(x, ln, eps)
    probs = F.linear(h, router).softmax(-1)
    at = torch.arange(e, device=x.device)
    p, o = probs.detach().unsqueeze(2), probs.detach().unsqueeze(1)
    rank = ((o > p) | ((o == p) & (at[None, None, :] < at[None, :, None]))).sum(-1)
    mask = (rank < topk).float()
    w = probs * mask
    w = w / w.sum(-1, keepdim=True)
    gu = F.linear(h.to(dt), gate_up.to(dt).reshape(e * i2, d)).view(-1, e, 2, i2 // 2).float()
    act = (F.silu(gu[:, :, 0]) * gu[:, :, 1] * w.unsqueeze(2)).to(dt).reshape(-1, e * (i2 // 2))
    y = F.linear(act, down.to(dt).permute(1, 0, 2).reshape(d, e * (i2 // 2)))
    load = mask.mean(0)
    aux = (load * probs.mean(0)).sum() * e / topk
    return x + y, aux, load


def chunk_loss(x, targets, norm, embed, eps: float):
    h = rms_norm(x, norm, eps).to(torch.bfloat16)
    lg = F.linear(h, embed.to(torch.bfloat16)).float()
    return lg.logsumexp(-1) - lg.gather(1, targets[:, None]).squeeze(1), lg.argmax(-1)


class Dense:
    """The forward pass of a Model on a GPU."""

    def __init__(self, model: Model, compiled: bool, backend=None):
        self.m, self.backend = model, backend
        c = model.c
        dev = model.embed.device
        inv = 1.0 / (c.rope_theta ** (torch.arange(0, c.head_dim, 2, device=dev).float() / c.head_dim))
        ang = torch.arange(c.max_position_embeddings, device=dev).float()[:, None] * inv[None]
        self.cos, self.sin = ang.cos(), ang.sin()

        def build(f):
            return torch.compile(f, dynamic=True) if compiled else f

        self.before, self.after, self.loss = build(before_attention), build(after_attention), build(chunk_loss)

    def attention(self, q, k, v):
        if q.device.type == "cpu":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        with torch.nn.attention.sdpa_kernel(self.backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def hidden(self, ids):
        m, c = self.m, self.m.c
        b, t = ids.shape
        cos = self.cos[:t].repeat(b, 1).unsqueeze(1)
        sin = self.sin[:t].repeat(b, 1).unsqueeze(1)
        x = F.embedding(ids.reshape(-1), m.embed)
        aux, loads = 0.0, []
        for l in m.layers:
            q, k, v = self.before(x, cos, sin, l.ln1, l.wq, l.wk, l.wv, l.q_norm, l.k_norm, c.head_dim, c.rms_norm_eps)
            q, k, v = (z.view(b, t, -1, c.head_dim).transpose(1, 2) for z in (q, k, v))
            a = self.attention(q, k, v).transpose(1, 2).reshape(b * t, -1)
            x, one, load = self.after(x, a, l.wo, l.ln2, l.router, l.gate_up, l.down, c.num_experts_per_tok, c.rms_norm_eps)
            aux = aux + one
            loads.append(load)
        return x, aux / len(m.layers), torch.stack(loads)

    def __call__(self, ids, targets, chunk=32768):
        x, aux, loads = self.hidden(ids)
        y = targets.reshape(-1)
        parts = [self.loss(x[i:i + chunk], y[i:i + chunk], self.m.norm, self.m.embed, self.m.c.rms_norm_eps) for i in range(0, len(y), chunk)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]), aux, loads


class StackedMuon(Muon):
    """Muon over stacks of equal matrices: a few dozen kernels per step, not a thousand."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes: dict = {}
            for p in group["params"]:
                shapes.setdefault(p.shape[-2:], []).append(p)
            for shape, ps in shapes.items():
                count = [p.numel() // (shape[0] * shape[1]) for p in ps]
                g = torch.cat([p.grad.reshape(n, *shape) for n, p in zip(count, ps)])
                buf = self.state[ps[0]].setdefault("buf", torch.zeros_like(g))
                buf.lerp_(g, 1 - group["momentum"])
                x = g.lerp(buf, group["momentum"]).to(torch.bfloat16)
                flip = shape[0] > shape[1]
                x = x.mT if flip else x
                x = x / (x.float().flatten(-2).norm(dim=-1)[..., None, None].to(x.dtype) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
                x = x.mT if flip else x
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for p, u in zip(ps, x.float().split(count)):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u.reshape(p.shape), alpha=-group["lr"] * scale)


def load(path: Path, theta: float, positions: int, new_heads: bool, tok: Tokenizer) -> Model:
    c = Config.load(path / "config.json")
    c.rope_theta, c.max_position_embeddings = theta or c.rope_theta, positions
    model, state = Model(c), load_file(str(path / "model.safetensors"))
    for k, v in model.hf_views().items():
        v.copy_(state[k].float())
    if new_heads:  # those of layer 0 that look back were made for the old base
        x = Batcher(tok, 7, 65536).batch("frequencies", 1.0, 4, 1024)[0]
        install_offset_heads(model, torch.bincount(x.flatten(), minlength=c.vocab_size).float())
    return model


def fastest_attention(length):
    """The attention kernel that is fastest here, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    best = None
    for b in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        try:
            q = torch.randn(1, length, 4, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
            k, v = (torch.randn(1, length, 2, 64, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_() for _ in range(2))
            for _ in range(2):
                torch.cuda.synchronize()
                t = time.time()
                with sdpa_kernel(b):
                    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
                o.backward(torch.randn_like(o))
                torch.cuda.synchronize()
                t = time.time() - t
            ok = all(bool(z.grad.isfinite().all()) for z in (q, k, v))
            print(f"attention {b.name}: {1000 * t:.1f} ms at {length}, {length ** 2 * 256 * 2 * 3.5 / t / 1e12:.0f} TFLOP/s, finite {ok}", flush=True)
            if ok and (best is None or t < best[0]):
                best = (t, b)
        except RuntimeError as e:
            print(f"attention {b.name}: {str(e)[:200]}", flush=True)
    return best[1]


@torch.no_grad()
def validate(dense, tok, dev, tokens=32768, cache={}):
    if not cache:
        for name, length, make in (("text", 256, text_only), ("recall256", 256, recall_only), ("recall1024", 1024, recall_only),
                                   ("recall2048", 2048, recall_only)):
            x, y, _, ans = Batcher(tok, 7, tokens).batch("validation-" + name, 1.0, 4, length, make)
            cache[name] = x.to(dev), y.to(dev), ans.to(dev)
    out = {}
    for name, (x, y, ans) in cache.items():
        loss, pred, _, _ = dense(x, y)
        if name == "text":
            out["val_loss"] = loss.mean().item()
        else:
            out[name] = (pred == y.view(-1))[ans == 1].float().mean().item()
    return {k: round(v, 4) for k, v in out.items()}


# ------------------------------------------------------------------- evaluation

def prompt_maker(path, jobs, results, seed):
    """Makes evaluation prompts while the GPU trains."""
    import recall_eval
    os.nice(2)
    tok = Tokenizer.from_file(path)
    while True:
        try:
            length, index, depths, facts = jobs.get(timeout=5)
        except queue.Empty:
            return
        for d in depths:
            _, ids, fact = recall_eval.make_prompt(tok, length, d, index, facts)
            results.put((length, index, d, facts, np.asarray(ids, np.uint16), recall_eval.answer_ids(tok, fact)))


@torch.no_grad()
def evaluate(dense, prompts, dev, out: Path, deadline):
    """Recall by length and depth with the weights as exported, one forward pass per prompt and answer."""
    rows: dict = {}
    for length, index, d, facts, ids, ans in sorted(prompts, key=lambda p: (p[0] > 131072, -(p[0] == 131072), p[0], p[1], p[2])):
        if time.time() > deadline:
            break
        t = time.time()
        x = torch.tensor([ids.tolist() + ans], device=dev)
        h = dense.hidden(x)[0][len(ids) - 1:-1]
        lg = F.linear(rms_norm(h, dense.m.norm, dense.m.c.rms_norm_eps), dense.m.embed)
        pred = lg.argmax(-1).tolist()
        r = rows.setdefault((length, d, facts), dict(length=length, depth=d, facts=facts, prompts=0, code=0, whole=0, first=0, seconds=0.0))
        r["prompts"] += 1
        r["code"] += pred[-5:-1] == ans[-5:-1]
        r["whole"] += pred == ans
        r["first"] += pred[-5] == ans[-5]
        r["seconds"] = round(r["seconds"] + time.time() - t, 3)
    rows_list = sorted(rows.values(), key=lambda r: (r["facts"], r["length"], r["depth"]))
    out.write_text(json.dumps(rows_list, indent=1) + "\n")
    for f, n in sorted({(r["facts"], r["length"]) for r in rows_list}):
        print(f"recall, {f} facts, {n:6d} tokens: " + ", ".join(f"{r['depth']} %: {r['code']}/{r['prompts']}" for r in rows_list if (r["facts"], r["length"]) == (f, n)), flush=True)


# --------------------------------------------------------------------- training

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", type=Path, required=True, help="exported model to go on from")
    ap.add_argument("--out", type=Path, required=True, help="the model, its curve (lengthen.csv) and recall.json go here")
    ap.add_argument("--seconds", type=float, default=420, help="for training")
    ap.add_argument("--eval-seconds", type=float, default=60)
    ap.add_argument("--eval-prompts", type=int, default=6, help="per length and depth")
    ap.add_argument("--theta", type=float, default=0, help="new base of RoPE; sets the heads of layer 0 that look back again")
    ap.add_argument("--plan", help="lengths and the share of the time that each takes at most, as in 4k:0.2,8k:0.8")
    ap.add_argument("--lr-muon", type=float, default=0.015)
    ap.add_argument("--lr-adam", type=float, default=0.003)
    ap.add_argument("--shorts", type=int, default=2, help="batches of short documents in a step")
    ap.add_argument("--hold", type=float, default=0.5, help="share of the time at full learning rate; 1: it is not lowered")
    ap.add_argument("--seed", type=int, default=11)
    ap.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 3))
    ap.add_argument("--stages", type=int, default=0, help="print the time of a step at each length, this many steps each, and end")
    ap.add_argument("--tiny", action="store_true", help="short lengths, for a smoke test")
    ap.add_argument("--no-compile", action="store_true")
    a = ap.parse_args()
    t_begin = time.time()
    a.out.mkdir(parents=True, exist_ok=True)
    stages = [(size(x.split(":")[0]), float(x.split(":")[1])) for x in a.plan.split(",")] if a.plan else STAGES
    if a.tiny:
        stages = [(length // 32, s) for length, s in stages]
    positions = 262144
    scale = 64 if a.tiny else 1
    sizes = dict(short=65536 // scale, short_lengths=[256, 512, 1024] if a.tiny else [256, 512, 1024, 2048, 4096],
                 short_shares=[0.3, 0.3, 0.4] if a.tiny else [0.3, 0.2, 0.2, 0.15, 0.15],
                 long=[(n, (65536 if n < 32768 / (32 if a.tiny else 1) else 131072) // scale) for n, _ in stages])
    val_tokens = 2048 if a.tiny else 32768
    path = str(a.model / "tokenizer.json")
    ctx = mp.get_context("spawn")
    short_q, long_q, jobs, made = ctx.Queue(12), ctx.Queue(12), ctx.Queue(), ctx.Queue()
    stage, stop = ctx.Value("i", 0), ctx.Value("b", 0)
    procs = [ctx.Process(target=worker, args=(i, a.seed, path, short_q, long_q, stage, sizes, stop), daemon=True) for i in range(a.workers)]
    for p in procs:
        p.start()
    cuda = torch.cuda.is_available()
    dev = "cuda" if cuda else "cpu"
    tok = Tokenizer.from_file(path)
    eval_lengths = [n for n, _ in stages]
    for i in range(a.eval_prompts):
        for n in eval_lengths:
            if n < 262144 or i < max(1, a.eval_prompts // 2):
                jobs.put((n, i, (0, 25, 50, 75, 100), 4))
            if n == stages[-2][0] and i < max(1, a.eval_prompts // 2):
                jobs.put((n, i, (0, 25, 50, 75, 100), 16))
    makers = [ctx.Process(target=prompt_maker, args=(path, jobs, made, a.seed), daemon=True) for _ in range(2)]
    torch.manual_seed(a.seed)
    model = load(a.model, a.theta, positions, a.theta > 0, tok).to(dev)
    dense = Dense(model, not a.no_compile, fastest_attention(131072) if cuda else None)
    muon, adam = optimizers(model, a.lr_muon, a.lr_adam, 0.1)
    muon = StackedMuon(muon.param_groups[0]["params"], a.lr_muon, weight_decay=0.1)
    if cuda:
        groups = [{k: g[k] for k in ("params", "lr")} for g in adam.param_groups]
        adam = torch.optim.AdamW(groups, a.lr_adam, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    opts = [muon, adam]
    base = [g["lr"] for o in opts for g in o.param_groups]

    def get(q):
        length, x, y, w, kind = q.get(timeout=120)
        t = [torch.from_numpy(z) for z in (x.astype(np.int64), y.astype(np.int64), w.astype(np.float32), kind)]
        return length, [z.to(dev, non_blocking=True) for z in t]

    def short_part():
        _, (x, y, w, ans) = get(short_q)
        loss, pred, aux, loads = dense(x, y)
        ((loss * w).sum() / w.sum() + 0.01 * aux).backward()
        hit = (pred == y.view(-1)).float()
        with torch.no_grad():
            return dict(text_loss=loss[(w == 1) & (ans == 0)].mean(), recall_acc=hit[ans > 0].mean(), first_acc=hit[ans == 1].mean(), aux=aux,
                        max_load=loads.max() * model.c.num_experts / model.c.num_experts_per_tok)

    def long_part():
        length, (x, y, w, kind) = get(long_q)
        loss, pred, aux, _ = dense(x, y)
        v = 4.0 * (kind == FIRST) + 1.0 * (kind == OTHER) + 0.3 * (kind == SAID)
        ((loss * w).sum() / w.sum() + (loss * v).sum() / v.sum().clamp(min=1) + 0.01 * aux).backward()
        hit = (pred == y.view(-1)).float()
        with torch.no_grad():
            return length, dict(long_text=(loss * w).sum() / w.sum(), long_first=hit[kind == FIRST].mean(), long_other=hit[kind == OTHER].mean(),
                                long_said=hit[kind == SAID].mean()), x.numel()

    print(f"ready after {time.time() - t_begin:.1f} s: {sum(p.numel() for p in model.parameters())} parameters, {dev}, {a.workers} workers, theta {model.c.rope_theta}", flush=True)
    try:
        print("validation", validate(dense, tok, dev, val_tokens), f"after {time.time() - t_begin:.1f} s", flush=True)
        if a.stages:
            rng, digits = random.Random(1), Batcher(tok, 1, 64).digit
            for length, tokens in sizes["long"]:
                t = time.time()
                b = long_batch(rng, tok, length, max(1, tokens // length), digits, 0)
                made_in = time.time() - t
                x, y = (torch.from_numpy(z.astype(np.int64)).to(dev) for z in b[:2])
                for _ in range(a.stages):
                    t = time.time()
                    loss, _, aux, _ = dense(x, y)
                    loss.mean().backward()
                    if cuda:
                        torch.cuda.synchronize()
                    t = time.time() - t
                print(f"{tuple(x.shape)}: {1000 * t:.0f} ms, {x.numel() / t / 1e6:.2f} M tokens/s, batch made in {made_in:.2f} s, "
                      f"{torch.cuda.max_memory_allocated() / 2 ** 30 if cuda else 0:.1f} GiB", flush=True)
                model.zero_grad(set_to_none=True)
            return
        for p in makers:
            p.start()
        fields = ["step", "seconds", "stage", "length", "tokens", "lr", "text_loss", "recall_acc", "first_acc", "aux", "max_load", "long_text", "long_first",
                  "long_other", "long_said", "gain", "step_s", "wait_s", "val_loss", "recall256", "recall1024", "recall2048"]
        log = (a.out / "lengthen.csv").open("w", newline="")
        writer = csv.DictWriter(log, fields)
        writer.writeheader()
        log.flush()
        t0 = time.time()
        step, seen, entered, recent, saved, checked = 0, 0, 0.0, [], 0.0, 0.0
        while (now := time.time() - t0) < a.seconds:
            p = now / a.seconds
            f = min(1.0, (step + 1) / 30)
            if a.hold < 1:
                f *= min(1.0, max(0.02, (1 - p) / (1 - a.hold)))
            for g, lr in zip([g for o in opts for g in o.param_groups], base):
                g["lr"] = lr * f
            t = time.time()
            one = {}
            for _ in range(a.shorts):
                one = short_part()
            length, two, n = long_part()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if bool(norm.isfinite()):
                for o in opts:
                    o.step()
            else:
                print("a step was left out: its gradient is not finite", flush=True)
            for o in opts:
                o.zero_grad(set_to_none=True)
            row = {k: round(float(v.detach()), 4) for k, v in {**one, **two}.items()}
            step, seen = step + 1, seen + n + a.shorts * sizes["short"]
            row.update(step=step, seconds=round(time.time() - t0, 2), stage=stages[stage.value][0], length=length, tokens=seen, lr=round(f, 4),
                       gain=round(max(float((l.q_norm.detach().abs().max() * l.k_norm.detach().abs().max())) for l in model.layers), 2),
                       step_s=round(time.time() - t, 3), wait_s=short_q.qsize() + long_q.qsize())
            if length == stages[stage.value][0]:
                recent = (recent + [row["long_first"]])[-8:]
            if stage.value < len(stages) - 1:
                limit = sum(s for _, s in stages[:stage.value + 1]) * a.seconds
                if (len(recent) == 8 and np.mean(recent) > READY) or now > limit:
                    stage.value += 1
                    print(f"stage {stages[stage.value][0]} at {now:.0f} s, step {step}, first digits {np.mean(recent) if recent else 0:.3f}", flush=True)
                    recent = []
            if now - checked > 10:
                row.update(validate(dense, tok, dev, val_tokens))
                checked = now
            if step % 10 == 0 or "val_loss" in row:
                print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)
            writer.writerow(row)
            log.flush()
            if now - saved > 60:
                export(model, tok, a.out)
                saved = now
        print(f"end of training: {step} steps, {seen} tokens, {time.time() - t0:.0f} s", flush=True)
    finally:
        stop.value = 1
        export(model, tok, a.out)
    if cuda:
        print(f"GPU memory {torch.cuda.max_memory_allocated() / 2 ** 30:.1f} GiB", flush=True)
    for p in model.parameters():  # as exported
        p.data = p.data.bfloat16().float()
    print("validation", validate(dense, tok, dev, val_tokens), flush=True)
    prompts = []
    try:
        while True:
            prompts.append(made.get(timeout=3))
    except queue.Empty:
        pass
    print(f"{len(prompts)} prompts", flush=True)
    evaluate(dense, prompts, dev, a.out / "recall.json", time.time() + a.eval_seconds)
    for p in procs + [m for m in makers if m.pid]:
        p.kill()
    os._exit(0)  # without waiting for the queues of those


if __name__ == "__main__":
    main()
