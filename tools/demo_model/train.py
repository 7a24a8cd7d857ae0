# SPDX-License-Identifier: Apache-2.0
"""Train the demo model: a small Qwen3-MoE, on CPU, from generated text.

    python train.py --out RUN --minutes 70            # train, checkpoint, export
    python train.py --out RUN --resume                # go on after a kill
    touch RUN/stop                                    # save and leave after the current 10 steps
    python train.py --out RUN --export-only DIR       # write the last checkpoint as a HF model
"""
from __future__ import annotations

import argparse
import csv
import json
import os
import random
import time
from pathlib import Path

import corpus
import numpy as np
import torch
import torch.distributed as dist
from model import Config, Model, install_offset_heads, optimizers, save_config
from safetensors.torch import save_file
from tok import save_tokenizer, train_tokenizer
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
BLOCK = 10  # steps between two moves of the schedule and two lines of the log
FACT_W = 0.05  # loss weight of a code's digits where stated, and below where asked for (first digit, others)
ANSWER_W = {2: (8.0, 1.0)}  # by level; to find the code is the hard part, to go on with it is not


def lengths(p: float, level: int):
    """Sequence lengths and their shares at progress p in [0, 1]."""
    if level == 2:
        return [128], [1.0]
    if level == 3:
        return [128, 256, 512], [0.4, 0.4, 0.2]
    if level == 4:
        return [256, 512, 1024, 2048, 4096], [0.38, 0.2, 0.22, 0.16, 0.04]
    return [256], [1.0]


def recall_doc(rng, length, level):
    """Recall documents get harder with the level; training raises it when the answers come out right."""
    if level == 0:
        return corpus.recall(rng, length, rng.randint(2, 4), 1.0 if rng.random() < 0.8 else rng.uniform(0.5, 1.0))
    if level == 1:
        return corpus.recall(rng, length, rng.randint(2, 6), 1.0 if rng.random() < 0.6 else rng.uniform(0.4, 1.0), terse=0.25)
    if level == 2:
        return corpus.recall(rng, length, rng.randint(2, 5), 1.0, easy=rng.random() < 0.6, terse=0.75)
    if level == 3:
        return corpus.recall(rng, length, rng.randint(2, max(4, min(10, length // 30))), 1.0 if rng.random() < 0.4 else rng.uniform(0.2, 1.0), terse=0.25)
    size = length if length <= 256 or rng.random() < 0.6 else rng.randint(128, length)
    n = rng.randint(1, 8 if size < 400 else 12 if size < 800 else 20)
    density = 1.0 if rng.random() < 0.15 else rng.uniform(0.08, 1.0)
    if size > 800:
        density = rng.uniform(0.05, 0.6)
    return corpus.recall(rng, size, n, density)


def sequence_text(rng, length, level):
    """Documents joined by the end-of-text mark, a little longer than `length` tokens."""
    docs, chars = [], 0
    if rng.random() < (0.6, 0.65, 0.9, 0.65, 0.55)[level]:
        docs.append(recall_doc(rng, length, level))
        chars = len(docs[0])
        if length > 256 and rng.random() < 0.4:  # not always at the start
            docs.insert(0, corpus.dialogue(rng))
            chars += len(docs[0])
    while chars < length * 4.4 + 60:
        d = corpus.dialogue(rng) if rng.random() < 0.72 else corpus.prose(rng)
        docs.append(d)
        chars += len(d)
    return corpus.EOT.join(docs) + corpus.EOT


class Batcher:
    def __init__(self, tok: Tokenizer, seed: int, tokens: int):
        self.tok, self.seed, self.tokens = tok, seed, tokens
        self.digit = np.zeros(tok.get_vocab_size(), bool)
        for d in "0123456789":
            self.digit[tok.token_to_id(d)] = True
        self.eot = tok.token_to_id(corpus.EOT)

    def weights(self, ids: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
        """Loss weight per token; 1 at the first and 2 at the other digits of a code asked for."""
        w = np.ones(len(ids), np.float32)
        ans = np.zeros(len(ids), np.int8)
        seen: set = set()
        i, n = 0, len(ids)
        for i in np.flatnonzero(self.digit[ids]):
            if i and self.digit[ids[i - 1]]:
                continue
            code = tuple(ids[i:i + 4])
            if len(code) == 4:
                if code in seen:
                    w[i], w[i + 1:i + 4] = ANSWER_W.get(level, (4.0, 4.0))
                    ans[i], ans[i + 1:i + 4] = 1, 2
                else:
                    w[i:i + 4] = FACT_W
                    seen.add(code)
            else:
                w[i:i + 4] = 0
        return w, ans

    def batch(self, name, p: float, level: int, length: int | None = None, make=None):
        rng = random.Random(f"{self.seed}-{name}")
        if length is None:
            ls, shares = lengths(p, level)
            length = rng.choices(ls, shares)[0]
        texts = [(make or sequence_text)(rng, length, level) for _ in range(self.tokens // length)]
        ids = np.full((len(texts), length + 1), self.eot, np.int64)
        w = np.zeros((len(texts), length + 1), np.float32)
        ans = np.zeros((len(texts), length + 1), np.int8)
        for r, e in enumerate(self.tok.encode_batch(texts)):
            row = np.array(e.ids[:length + 1])
            ids[r, :len(row)] = row
            w[r, :len(row)], ans[r, :len(row)] = self.weights(row, level)
        t = torch.from_numpy
        return t(ids[:, :-1].copy()), t(ids[:, 1:].copy()), t(w[:, 1:].copy()).view(-1), t(ans[:, 1:].copy()).view(-1)


def text_only(rng, length, level):
    s = ""
    while len(s) < length * 4.4 + 60:
        s += (corpus.dialogue(rng) if rng.random() < 0.72 else corpus.prose(rng)) + corpus.EOT
    return s


def recall_only(rng, length, level):
    return corpus.recall(rng, length, min(8, 2 + length // 100), 0.4 if length <= 256 else 0.25) + corpus.EOT


@torch.no_grad()
def validate(model, batcher):
    out = {}
    for name, length, make in (("text", 256, text_only), ("recall256", 256, recall_only), ("recall1024", 1024, recall_only),
                               ("recall2048", 2048, recall_only)):
        x, y, _, ans = batcher.batch("validation-" + name, 1.0, 4, length, make)
        loss, pred, _, _ = model(x, y)
        if name == "text":
            out["val_loss"] = loss.mean().item()
        else:
            out[name] = (pred == y.view(-1))[ans == 1].float().mean().item()
    return out


def export(model: Model, tok: Tokenizer, out: Path):
    c, out = model.c, Path(out)
    template = (HERE / "chat_template.jinja").read_text()
    save_tokenizer(tok, out, template, c.max_position_embeddings)
    eos, pad = tok.token_to_id(corpus.IM_END), tok.token_to_id(corpus.EOT)
    save_config(c, out / "config.json", eos, pad)
    (out / "generation_config.json").write_text(json.dumps({
        "bos_token_id": pad, "do_sample": True, "eos_token_id": [eos, pad], "pad_token_id": pad,
        "temperature": 0.6, "top_k": 20, "top_p": 0.95}, indent=2) + "\n")
    tmp = out / "model.safetensors.tmp"
    save_file(model.hf_state(), str(tmp), metadata={"format": "pt"})
    tmp.replace(out / "model.safetensors")


def lr_scale(step: int, p: float) -> float:
    return min(1.0, (step + 1) / 60) * min(1.0, max(0.0, (1.0 - p) / 0.45) * 0.98 + 0.02)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--minutes", type=float, default=70)
    ap.add_argument("--steps", type=int, default=10**9, help="stop after this many steps, if the time allows so many")
    ap.add_argument("--replay", type=Path, help="curves.csv of a run whose schedule is repeated step by step")
    ap.add_argument("--seed", type=int, default=7)
    ap.add_argument("--tokens", type=int, default=4096, help="tokens per step and rank")
    ap.add_argument("--lr-muon", type=float, default=0.02)
    ap.add_argument("--lr-adam", type=float, default=0.003)
    ap.add_argument("--ranks", type=int, default=2, help="processes of one thread each; the gradient is averaged once per step")
    ap.add_argument("--save-every", type=float, default=4, help="minutes between checkpoints")
    ap.add_argument("--export", type=Path, help="also export a model here at every checkpoint")
    ap.add_argument("--export-only", type=Path)
    ap.add_argument("--resume", action="store_true")
    a = ap.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    tok_file, ckpt, c = a.out / "tokenizer.json", a.out / "checkpoint.pt", Config()
    if tok_file.exists():
        tok = Tokenizer.from_file(str(tok_file))
    else:
        tok = train_tokenizer(a.seed, c.vocab_size)
        tok.save(str(tok_file))
    if a.export_only:
        model = Model(c)
        model.load_state_dict(torch.load(ckpt)["model"])
        export(model, tok, a.export_only)
        return
    (a.out / "rendezvous").unlink(missing_ok=True)
    (a.out / "stop").unlink(missing_ok=True)
    torch.multiprocessing.start_processes(train, (a, c), nprocs=a.ranks, start_method="spawn")


def train(rank: int, a, c: Config):
    """One rank. Threads inside a rank would wait for each other in every
    operation, which is slow where the cores are shared with other work."""
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{(a.out / 'rendezvous').resolve()}", rank=rank, world_size=a.ranks)
    ckpt = a.out / "checkpoint.pt"
    tok = Tokenizer.from_file(str(a.out / "tokenizer.json"))
    model = Model(c)
    opts = optimizers(model, a.lr_muon, a.lr_adam, 0.1)
    base = [g["lr"] for o in opts for g in o.param_groups]
    step, spent, level, seen, offset_heads = 0, 0.0, 0, 0, False
    if a.resume:
        s = torch.load(ckpt)
        model.load_state_dict(s["model"])
        for o, st in zip(opts, s["opts"]):
            o.load_state_dict(st)
        step, spent, level, seen = s["step"], s["spent"], s["level"], s["seen"]
        offset_heads = s.get("offset_heads", False)
    if rank == 0:
        print(f"parameters {sum(p.numel() for p in model.parameters())}, vocabulary {tok.get_vocab_size()}", flush=True)
    replay = None
    if a.replay:
        replay = {int(r["step"]): float(r["progress"]) for r in csv.DictReader(a.replay.open())}
        a.steps = max(replay)
    batcher = Batcher(tok, a.seed, a.tokens)
    log = (a.out / "curves.csv" if rank == 0 else Path(os.devnull)).open("a" if a.resume else "w", newline="")
    fields = ["step", "progress", "level", "tokens", "minutes", "loss", "text_loss", "recall_acc", "first_acc", "aux", "max_load", "tok_s",
              "val_loss", "recall256", "recall1024", "recall2048"]
    writer = csv.DictWriter(log, fields)
    if not a.resume:
        writer.writeheader()
    t_start, t_saved, t_log, seen_log = time.time() - spent, time.time(), time.time(), seen
    acc: dict[str, list] = {k: [] for k in ("loss", "text", "recall", "first", "aux", "load")}
    p = 0.0

    def checkpoint():
        torch.save(dict(model=model.state_dict(), opts=[o.state_dict() for o in opts], step=step, spent=spent, level=level, seen=seen,
                        offset_heads=offset_heads),
                   str(ckpt) + ".tmp")
        Path(str(ckpt) + ".tmp").replace(ckpt)

    while True:
        if step % BLOCK == 0:  # the schedule moves in blocks, so that it can be replayed
            if step >= a.steps:
                p = 1.0
            elif replay:
                p = replay[min(k for k in replay if k > step)]
            else:
                p = min(1.0, max(step / a.steps, (time.time() - t_start) / (60 * a.minutes)))
            state = torch.tensor([p, level, (a.out / "stop").exists()], dtype=torch.float64)
            dist.broadcast(state, 0)
            p, level, stop = state[0].item(), int(state[1]), bool(state[2])
            if stop or p >= 1.0:
                break
            if level >= 2 and not offset_heads:
                offset_heads = True
                x = batcher.batch("frequencies", p, 2)[0]
                install_offset_heads(model, torch.bincount(x.flatten(), minlength=c.vocab_size).float())
                for q in (model.layers[0].wq, model.layers[0].wk, model.layers[0].q_norm, model.layers[0].k_norm):
                    for o in opts:
                        o.state.pop(q, None)
        for g, lr in zip([g for o in opts for g in o.param_groups], base):
            g["lr"] = lr * lr_scale(step, p)
        x, y, w, ans = batcher.batch(step * a.ranks + rank, p, level)
        loss, pred, aux, loads = model(x, y)
        total = (loss * w).sum() / w.sum()
        (total + 0.01 * aux).backward()
        params = list(model.parameters())
        flat = torch.cat([q.grad.flatten() for q in params])
        dist.all_reduce(flat)
        for q, g in zip(params, (flat / a.ranks).split([q.numel() for q in params])):
            q.grad = g.view_as(q)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            o.step()
        for o in opts:
            o.zero_grad(set_to_none=True)
        with torch.no_grad():
            acc["loss"].append(total.item())
            acc["text"].append(loss[(w == 1) & (ans == 0)].mean().item())
            if ans.any():
                acc["recall"].append((pred == y.view(-1))[ans > 0].float().mean().item())
                acc["first"].append((pred == y.view(-1))[ans == 1].float().mean().item())
            acc["aux"].append(float(aux))
            acc["load"].append(loads.max().item() * c.num_experts / c.num_experts_per_tok)
        step += 1
        seen += x.numel() * a.ranks
        spent = time.time() - t_start
        if step % BLOCK == 0 and rank == 0:
            done = step >= a.steps or (not replay and spent >= 60 * a.minutes)
            save = done or (a.out / "stop").exists() or time.time() - t_saved > 60 * a.save_every
            mean = {k: float(np.mean(v)) if v else 0.0 for k, v in acc.items()}
            row = dict(step=step, progress=round(p, 6), level=level, tokens=seen, minutes=round(spent / 60, 2), loss=round(mean["loss"], 4),
                       text_loss=round(mean["text"], 4), recall_acc=round(mean["recall"], 4), first_acc=round(mean["first"], 4), aux=round(mean["aux"], 4),
                       max_load=round(mean["load"], 2), tok_s=int((seen - seen_log) / (time.time() - t_log)))
            left = a.minutes - spent / 60 if not replay else (a.steps - step) * spent / step / 60
            print(f"step {step} {100 * p:.1f}% level {level} loss {row['loss']} text {row['text_loss']} recall {row['recall_acc']} first {row['first_acc']} aux {row['aux']} "
                  f"load {row['max_load']} {row['tok_s']} tok/s, {left:.1f} min left", flush=True)
            acc = {k: [] for k in acc}
            t_log, seen_log = time.time(), seen
            if level < 4 and (mean["recall" if level < 2 else "first"] > (0.4, 0.75, 0.9, 0.85)[level] or p > (0.2, 0.3, 0.8, 0.85)[level]):
                level += 1
            if save:
                row.update({k: round(v, 4) for k, v in validate(model, batcher).items()})
                print("   validation", {k: row[k] for k in fields[-4:]}, flush=True)
                checkpoint()
                if a.export:
                    export(model, tok, a.export)
                t_saved = time.time()
            writer.writerow(row)
            log.flush()
    if rank == 0:
        checkpoint()
        if a.export:
            export(model, tok, a.export)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
