# SPDX-License-Identifier: Apache-2.0
"""Recall of one code by length and depth of the context.

    python recall_eval.py ../../models/demo --lengths 4k,16k --json out.json
    python recall_eval.py ../../models/demo --lengths 128k --engine ../../build/tools/cpuinfer --json out.json
    python recall_eval.py ../../models/demo --lengths 128k --together --engine ../../build/tools/cpuinfer --options='--kv-store /tmp/kv' --json out.json
    python recall_eval.py ../../models/demo --lengths 128k --write prompts

A prompt fills the whole length with prose. One fact ("The code of the red lamp is
4821.") stands at the given depth (0: first sentence, 100: last sentence before the
question), some others at random places, and the question is the end. The prompts depend
on length, depth, number and facts only, so every program gets the same ones. Without
--engine, Transformers answers, on a GPU if there is one.
"""
from __future__ import annotations

import argparse
import functools
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path

import corpus
from tokenizers import Tokenizer

RESERVE = 24  # tokens of the length that are left for the answer
DEPTHS = (0, 25, 50, 75, 100)


@functools.lru_cache(maxsize=2)
def prose(tok: Tokenizer, length: int, index: int):
    """Sentences of prose and the number of tokens of each; the same for every depth."""
    rng = random.Random(f"recall-eval-{length}-{index}")
    body = corpus.filler(rng, length)  # more than enough words
    return body, [len(e.ids) for e in tok.encode_batch([" " + s for s in body])]


def make_prompt(tok: Tokenizer, length: int, depth: float, index: int, n_facts: int = 4, together: tuple = ()):
    """(text, token ids, fact asked for) of prompt number `index`.

    n_facts stand in the text, one of them at the depth. With `together`, one at each of these depths and n_facts - 1 more:
    then the prompts of all depths are the same text up to the object asked for.
    """
    rng = random.Random(f"recall-eval-{length}-{'together' if together else depth}-{index}-{n_facts}")
    depths = together or (depth,)
    facts = corpus.make_facts(rng, n_facts - 1 + len(depths))
    asked = facts[depths.index(depth)]
    said = [corpus.statement(rng, f, plain=True) for f in facts]
    head = f"{corpus.IM_START}user\n"
    tails = [f" {corpus.question(rng, f, plain=True)}{corpus.IM_END}\n{corpus.IM_START}assistant\n{corpus.THINK}" for f in facts[:len(depths)]]
    sizes_of = [len(e.ids) for e in tok.encode_batch([head] + tails + [" " + s for s in said])]
    room = length - RESERVE - sizes_of[0] - max(sizes_of[1:len(tails) + 1]) - sum(sizes_of[len(tails) + 1:])
    body, sizes = prose(tok, length, index)
    n = 0
    while n < len(body) and room >= sizes[n]:
        room -= sizes[n]
        n += 1
    places = [(rng.randint(0, n), 1, s) for s in said[len(depths):]]
    # nothing comes before the fact at depth 0, and nothing after it at depth 100
    places += [(round(d / 100 * n), 0 if d < 100 else 2, s) for d, s in zip(depths, said)]
    places.sort(reverse=True)
    out = []
    for i in range(n + 1):
        while places and places[-1][0] == i:
            out.append(places.pop()[2])
        if i < n:
            out.append(body[i])
    text = head + " ".join(out) + tails[depths.index(depth)]
    ids = tok.encode(text).ids
    assert length - RESERVE - 60 < len(ids) <= length - RESERVE, (len(ids), length)
    return text, ids, asked


def answer_ids(tok: Tokenizer, fact) -> list[int]:
    return tok.encode(corpus.answer(fact)).ids


class Transformers:
    """One forward pass over prompt and expected answer: a greedy decoder gives the answer if every token of it is the most likely one."""

    def __init__(self, model: str):
        import torch
        from transformers import AutoModelForCausalLM
        self.torch, self.device = torch, "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa").to(self.device).eval()

    def __call__(self, tok, text, ids, fact):
        torch, ans = self.torch, answer_ids(tok, fact)
        with torch.inference_mode():
            x = torch.tensor([ids + ans], device=self.device)
            pred = self.model(input_ids=x, logits_to_keep=len(ans) + 1, use_cache=False).logits[0, :-1].argmax(-1).tolist()
        return pred[-5:-1] == ans[-5:-1], pred == ans, tok.decode(pred)


class Engine:
    def __init__(self, binary: str, model: str, extra: list[str]):
        self.binary, self.model, self.extra = binary, model, extra

    def __call__(self, tok, text, ids, fact):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
            f.write(text)
            f.flush()
            run = subprocess.run([self.binary, "--model", self.model, "--raw", "--greedy", "--max-tokens", str(RESERVE), "--ctx", str(len(ids) + RESERVE),
                                  "--prompt-file", f.name, *self.extra], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        out = run.stdout.strip() or run.stderr.strip()
        return fact[2] in run.stdout, run.stdout.strip() == corpus.answer(fact), out


def measure(ask, tok, lengths, depths, prompts, facts, together=(), save=None, deadline=None):
    """Asks everything, round by round, so that an early end leaves whole rounds."""
    rows = {(n, d): dict(length=n, depth=d, prompts=0, code=0, whole=0, seconds=0.0, wrong=[]) for n in lengths for d in depths}
    for n in lengths:
        for i in range(prompts):
            for d in depths:
                if deadline and time.time() > deadline:
                    break
                text, ids, fact = make_prompt(tok, n, d, i, facts, together)
                t = time.time()
                code, whole, out = ask(tok, text, ids, fact)
                r = rows[n, d]
                r["prompts"] += 1
                r["code"] += bool(code)
                r["whole"] += bool(whole)
                r["seconds"] = round(r["seconds"] + time.time() - t, 3)
                if not code:
                    r["wrong"].append([corpus.answer(fact), out])
                if save:
                    save(list(rows.values()))
        print(f"{n:7d} tokens: " + ", ".join(f"{d} %: {rows[n, d]['code']}/{rows[n, d]['prompts']}" for d in depths), flush=True)
    return list(rows.values())


def size(s: str) -> int:
    return int(s[:-1]) * 1024 if s.endswith("k") else int(s)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model")
    ap.add_argument("--lengths", default="4k,8k,16k")
    ap.add_argument("--depths", default=",".join(map(str, DEPTHS)), help="in percent")
    ap.add_argument("--prompts", type=int, default=4, help="per length and depth")
    ap.add_argument("--facts", type=int, default=4, help="stated in each prompt; one is asked for")
    ap.add_argument("--together", action="store_true", help="facts at all depths in one text, which is the same for every question but for its end; "
                    "with --options='--kv-store DIR' cpuinfer then computes it once")
    ap.add_argument("--engine", help="the program cpuinfer")
    ap.add_argument("--options", default="", help="for it, as in --options='--threads 1'")
    ap.add_argument("--write", type=Path, help="only write the prompts here: .txt, and .json with token ids and the right answer")
    ap.add_argument("--json", type=Path)
    ap.add_argument("--seconds", type=float, help="stop asking after this time")
    a = ap.parse_args()
    tok = Tokenizer.from_file(str(Path(a.model) / "tokenizer.json"))
    lengths, depths = [size(s) for s in a.lengths.split(",")], [int(s) for s in a.depths.split(",")]
    together = tuple(depths) if a.together else ()
    if a.write:
        a.write.mkdir(parents=True, exist_ok=True)
        for n in lengths:
            for i in range(a.prompts):
                for d in depths:
                    text, ids, fact = make_prompt(tok, n, d, i, a.facts, together)
                    stem = a.write / f"{n}-{d}-{i}"
                    stem.with_suffix(".txt").write_text(text)
                    stem.with_suffix(".json").write_text(json.dumps(dict(length=n, depth=d, index=i, answer=corpus.answer(fact), code=fact[2], ids=ids)) + "\n")
        return
    ask = Engine(a.engine, a.model, a.options.split()) if a.engine else Transformers(a.model)

    def save(rows):
        if a.json:
            a.json.write_text(json.dumps(dict(program="cpuinfer" if a.engine else "transformers", facts=a.facts, together=a.together, rows=rows), indent=1) + "\n")

    save(measure(ask, tok, lengths, depths, a.prompts, a.facts, together, save, time.time() + a.seconds if a.seconds else None))


if __name__ == "__main__":
    main()
