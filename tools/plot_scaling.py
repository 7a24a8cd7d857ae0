#!/usr/bin/env python3
"""Computes the tables and the figure of docs/scaling.md from the shapes of the models.

  tools/plot_scaling.py            print the tables
  tools/plot_scaling.py --update   write them into docs/scaling.md, and docs/figures/decode-by-context.svg
  tools/plot_scaling.py --check    exit 1 if the formulas miss the measured counters by more than 0.5 %, or if the page
                                   or the figure is not what this program writes

Nothing here is measured but COUNTERS, which are amounts of work, not speeds. Needs Python 3.9 or later, nothing else.
"""
import math
import pathlib
import re
import sys
from dataclasses import dataclass

from doc_tables import filled, markdown, number, stale

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/scaling.md"
FIGURE = ROOT / "docs/figures/decode-by-context.svg"

UNIT = 16          # outputs that are one piece of work (kernels/pack.h)
SUPERBLOCK = 1024  # context tokens of a kv head that are one piece of work in decode (docs/numerics.md)
READ_SHARE = 0.90  # assumption: best read loop over the peak of the memory channels
EFFICIENCY = 0.90  # assumption: cpuinfer over the best read loop, while every core has work
CORE_READ = 15e9   # assumption: bytes/s that one core reads when the others leave it the memory


@dataclass(frozen=True)
class Model:
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    expert_width: int
    vocab: int

    # Parameters; two bytes each.
    def qkv(self): return self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim
    def output(self): return self.hidden * self.heads * self.head_dim
    def router(self): return self.hidden * self.experts
    def expert(self): return 3 * self.hidden * self.expert_width
    def lm_head(self): return self.vocab * self.hidden
    def dense(self): return self.qkv() + self.output() + self.router()

    def all_weight_bytes(self):
        return 2 * (self.layers * (self.dense() + self.experts * self.expert()) + 2 * self.lm_head())

    def kv_bytes(self): return self.layers * self.kv_heads * self.head_dim * 2 * 2  # of one token
    def attention_flops(self): return self.layers * 4 * self.heads * self.head_dim  # of a token per token that it sees

    def distinct(self, rows, k): return self.experts * (1 - (1 - k / self.experts) ** rows)

    def step_weight_bytes(self, rows, k, logits=True):
        return 2 * (self.layers * (self.dense() + self.distinct(rows, k) * self.expert()) + logits * self.lm_head())

    def token_flops(self, k): return 2 * (self.layers * (self.dense() + k * self.expert()) + self.lm_head())


def read_models():
    """The shapes, from the one place that has them."""
    models = {}
    for line in (ROOT / "tools/synth_configs.cc").read_text().splitlines():
        found = re.match(r'\s*\{"(qwen3-(?:30b-a3b|235b-a22b))", (.*?)\},', line)
        if not found: continue
        layers, hidden, heads, kv, dim, _, experts, _, width = map(int, found[2].split(", ")[:9])
        models[found[1]] = Model(found[1], layers, hidden, heads, kv, dim, experts, width, 151936)
    return models


@dataclass(frozen=True)
class Machine:
    name: str
    cores: int
    peak_read: float  # bytes/s of all memory channels
    flops: float      # bf16, cores x per cycle x base clock
    flop_share: float # of it that matrix products are expected to reach
    meeting: float    # assumption: seconds of one meeting of all workers
    colour: str

    def read(self): return READ_SHARE * self.peak_read


def channels(count, mega_transfers): return 2 * count * mega_transfers * 1e6 * 8


MACHINES = [
    Machine("Sapphire Rapids", 112, channels(8, 4800), 112 * 1024 * 2.0e9, 0.35, 1.5e-6, "#d9711c"),
    Machine("Granite Rapids", 256, channels(12, 8800), 256 * 1024 * 2.0e9, 0.35, 2e-6, "#2b83ba"),
    Machine("Turin", 256, channels(12, 6000), 256 * 128 * 2.7e9, 0.75, 2e-6, "#2a9d5c"),
]


def decode_bytes(model, k, context, batch):
    return model.step_weight_bytes(batch, k) + batch * context * model.kv_bytes()


def decode_flops(model, k, context, batch):
    return batch * (model.token_flops(k) + context * model.attention_flops())


def decode_bound(machine, model, k, context, batch):
    """Tokens/s at all of the read bandwidth, or of the arithmetic if that is less."""
    return batch / max(decode_bytes(model, k, context, batch) / machine.read(),
                       decode_flops(model, k, context, batch) / machine.flops)


def decode_expected(machine, model, k, context, batch):
    """The same with EFFICIENCY, meetings, and phases whose pieces do not divide by the cores."""
    bandwidth = EFFICIENCY * machine.read()

    def phase(pieces, piece_bytes):
        rounds, rest = divmod(pieces, machine.cores)
        seconds = rounds * machine.cores * piece_bytes / bandwidth
        return seconds + (piece_bytes / min(CORE_READ, bandwidth / rest) if rest else 0)

    distinct = model.distinct(batch, k)
    layer = (phase((model.heads + 2 * model.kv_heads) * model.head_dim // UNIT, 2 * UNIT * model.hidden) +
             phase(model.hidden // UNIT, 2 * UNIT * model.heads * model.head_dim) +
             phase(model.experts // UNIT, 2 * UNIT * model.hidden) +
             phase(round(distinct * 2 * model.expert_width / UNIT), 2 * UNIT * model.hidden) +
             phase(model.hidden // UNIT, 2 * UNIT * model.expert_width * distinct))
    blocks = context // SUPERBLOCK
    if context > 0:
        head_bytes = 4 * model.head_dim * context / max(1, blocks)
        layer += phase(batch * model.kv_heads * max(1, blocks), head_bytes)
    seconds = model.layers * layer + phase(model.vocab // UNIT, 2 * UNIT * model.hidden)
    computing = decode_flops(model, k, context, batch) / (machine.flop_share * machine.flops)
    return batch / (max(seconds, computing) + meetings(model, context, batch) * machine.meeting)


def meetings(model, context, batch):
    many = batch > 4
    return model.layers * (6 + (4 if many else 0) + (1 if context >= SUPERBLOCK else 0)) + 2 + many


def prefill_flops(model, k, depth, tokens):
    """Logits of the last token only."""
    seen = tokens * depth + tokens * (tokens + 1) / 2
    linear = model.token_flops(k) - 2 * model.lm_head()
    return tokens * linear + 2 * model.lm_head() + seen * model.attention_flops()


def prefill_seconds(machine, model, k, tokens, chunk):
    seconds = 0
    for depth in range(0, tokens, chunk):
        rows = min(chunk, tokens - depth)
        flops = prefill_flops(model, k, depth, rows)
        read = model.step_weight_bytes(rows, k, logits=False) + (depth + rows) * model.kv_bytes()
        seconds += max(read / (EFFICIENCY * machine.read()), flops / (machine.flop_share * machine.flops))
    return seconds


# --- the tables -------------------------------------------------------------------------------------------------------

DEPTHS = [("0", 0), ("32k", 32 << 10), ("128k", 128 << 10), ("256k", 256 << 10)]
BATCHES = [1, 8, 32]

# Counters of `bench model --synthetic qwen3-30b-a3b --layers 2` (docs/scaling.md): bytes or FLOP of one token.
COUNTERS = [
    # what, experts, depth, batch or tokens, measured
    ("decode, bytes", 16, 0, 1, 1000.901e6),
    ("decode, bytes", 16, 32768, 1, 1135.1e6),
    ("decode, bytes", 8, 0, 8, 209.930e6),
    ("decode, bytes", 16, 0, 8, 286.460e6),
    ("decode, bytes", 16, 0, 32, 96.451e6),
    ("decode, FLOP", 8, 0, 1, 850.149e6),
    ("prefill 2048, FLOP", 16, 0, 2048, 412.4e6),
    ("prefill 2048, FLOP", 16, 32768, 2048, 1486e6),
]


def duration(seconds):
    if seconds < 119.5: return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 9.95 * 60 else f"{seconds / 60:.0f} min"


def counter_rows(model):
    two = Model(model.name, 2, *[getattr(model, f) for f in list(Model.__dataclass_fields__)[2:]])
    for what, k, depth, n, measured in COUNTERS:
        if what.endswith("bytes"): computed = decode_bytes(two, k, depth, n) / n
        elif what.startswith("decode"): computed = decode_flops(two, k, depth, n) / n
        else: computed = prefill_flops(two, k, depth, n) / n
        yield what, k, depth, n, measured, computed


def tables(models):
    small, large = models["qwen3-30b-a3b"], models["qwen3-235b-a22b"]
    both = [("30B-A3B", small), ("235B-A22B", large)]
    made = {}

    rows = [[what, str(k), str(depth), str(n) if what.startswith("decode") else "1", f"{measured / 1e6:.1f}",
             f"{computed / 1e6:.1f}", f"{100 * (computed / measured - 1):+.2f} %"]
            for what, k, depth, n, measured, computed in counter_rows(small)]
    made["counters"] = markdown(["per token", "K", "depth", "batch", "counted, M", "formula, M", "difference"], rows)

    rows = []
    for label, model in both:
        for k in (8, 16):
            rows.append([f"{label}, K = {k}", f"{model.token_flops(k) / 1e9:.1f}",
                         f"{model.attention_flops() / 1e6:.2f}"] +
                        [number(decode_bytes(model, k, depth, 1) / 1e9) for _, depth in DEPTHS] +
                        [number(decode_bytes(model, k, 0, batch) / batch / 1e9) for batch in BATCHES[1:]] +
                        [f"{model.distinct(8, k):.0f}, {model.distinct(32, k):.0f}"])
    made["work"] = markdown(["", "GFLOP/token", "+ MFLOP per token seen"] +
                            [f"GB/token at {name}" for name, _ in DEPTHS] +
                            [f"at 0, batch {batch}" for batch in BATCHES[1:]] + ["experts read, batch 8, 32"], rows)

    rows = []
    for label, model in both:
        rows.append([label, f"{model.all_weight_bytes() / 1e9:.1f}", f"{model.kv_bytes() // 1024} KiB"] +
                    [" / ".join(f"{(model.all_weight_bytes() + batch * depth * model.kv_bytes()) / 1e9:.0f}"
                                for batch in BATCHES) for _, depth in DEPTHS[1:]])
    made["memory"] = markdown(["", "weights, GB", "KV per token"] +
                              [f"{name}: batch 1 / 8 / 32, GB" for name, _ in DEPTHS[1:]], rows)

    phases = [("qkv", lambda m: (m.heads + 2 * m.kv_heads) * m.head_dim // UNIT), ("output", lambda m: m.hidden // UNIT),
              ("router", lambda m: m.experts // UNIT), ("gate, up (K = 8)", lambda m: 8 * 2 * m.expert_width // UNIT),
              ("down", lambda m: m.hidden // UNIT), ("attention at 32k", lambda m: m.kv_heads * 32),
              ("lm_head", lambda m: m.vocab // UNIT)]
    rows = [[label] + [str(pieces(model)) for _, pieces in phases] for label, model in both]
    made["pieces"] = markdown(["pieces, batch 1"] + [name for name, _ in phases], rows)

    rows = [[m.name, str(m.cores), f"{m.peak_read / 1e9:.0f}", f"{m.read() / 1e9:.0f}", f"{m.flops / 1e12:.0f}",
             f"{100 * m.flop_share:.0f} %", f"{m.meeting * 1e6:.1f} us"] for m in MACHINES]
    made["machines"] = markdown(["2 sockets", "cores", "channels' peak, GB/s", "read bandwidth, GB/s",
                                 "bf16 peak, TFLOP/s", "reached by products", "one meeting"], rows)

    for label, model in both:
        rows = [[str(k), name] +
                [f"{number(decode_bound(m, model, k, depth, batch))} / {number(decode_expected(m, model, k, depth, batch))}"
                 for m in MACHINES for batch in BATCHES] for k in (8, 16) for name, depth in DEPTHS]
        made[f"decode {label}"] = markdown(
            ["K", "context"] + [f"{m.name.replace(' Rapids', '')}, {batch}" for m in MACHINES for batch in BATCHES], rows)

    rows = [[f"{label}, K = {k}"] + [" / ".join(duration(prefill_seconds(m, model, k, depth, chunk))
                                              for chunk in (512, 4096)) for m in MACHINES for _, depth in DEPTHS[1:]]
            for label, model in both for k in (8, 16)]
    made["prefill"] = markdown(["chunk 512 / 4096"] + [f"{m.name.replace(' Rapids', '')}, {name}"
                                                      for m in MACHINES for name, _ in DEPTHS[1:]], rows)
    return made


# --- the figure -------------------------------------------------------------------------------------------------------

GREY = "#808080"  # reads on white and on dark


def panel(model, title, left, top, width, height, y_max, y_step):
    first, last = 1024, 256 << 10

    def x(context): return left + width * math.log(context / first) / math.log(last / first)
    def y(value): return top + height * (1 - value / y_max)
    out = [f'<text x="{left + width / 2}" y="{top - 14}" text-anchor="middle" font-weight="bold">{title}</text>']
    for tick in range(0, y_max + 1, y_step):
        out.append(f'<path d="M{left} {y(tick):.1f}H{left + width}" stroke="{GREY}" stroke-opacity="0.3"/>'
                   f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    for power in range(0, 9, 2):
        context = first << power
        out.append(f'<path d="M{x(context):.1f} {top}V{top + height}" stroke="{GREY}" stroke-opacity="0.3"/>'
                   f'<text x="{x(context):.1f}" y="{top + height + 18}" text-anchor="middle">{context >> 10}k</text>')
    out.append(f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">context, tokens (log)</text>')
    for machine in MACHINES:
        for k, dash in ((8, ""), (16, ' stroke-dasharray="6 4"')):
            # Whole superblocks: what lies between them is a saw of a few percent.
            points = sorted({max(1, round(2 ** (i / 8))) * SUPERBLOCK for i in range(65)})
            line = " ".join(f"{x(c):.1f},{y(decode_expected(machine, model, k, c, 1)):.1f}" for c in points)
            out.append(f'<polyline points="{line}" fill="none" stroke="{machine.colour}" stroke-width="2"{dash}/>')
    return out


def figure(models):
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="830" height="400" viewBox="0 0 830 400" '
           f'font-family="sans-serif" font-size="13" fill="{GREY}">',
           '<title>Decode speed against context: computed, not measured</title>']
    out += panel(models["qwen3-30b-a3b"], "Qwen3-30B-A3B", 66, 78, 325, 262, 160, 40)
    out += panel(models["qwen3-235b-a22b"], "Qwen3-235B-A22B", 480, 78, 325, 262, 28, 7)
    out += ['<text transform="translate(20 209) rotate(-90)" text-anchor="middle">decode, tokens/s (batch 1)</text>']
    keys = [(f"{m.name}", m.colour, "") for m in reversed(MACHINES)]
    keys = [keys[1], keys[0], keys[2], ("K = 8", GREY, ""), ("K = 16", GREY, ' stroke-dasharray="6 4"')]
    for (text, colour, dash), left in zip(keys, (66, 214, 300, 480, 590)):
        out.append(f'<path d="M{left} 24h28" stroke="{colour}" stroke-width="3"{dash}/>'
                   f'<text x="{left + 34}" y="28">{text}</text>')
    return "\n".join(out + ["</svg>", ""])


# --- the program ------------------------------------------------------------------------------------------------------


def main(arguments):
    if len(arguments) > 1 or arguments not in ([], ["--update"], ["--check"]):
        sys.exit("usage: tools/plot_scaling.py [--update | --check]")
    models = read_models()
    if len(models) != 2: sys.exit("tools/synth_configs.cc: the lines of qwen3-30b-a3b and qwen3-235b-a22b are not there")
    made = tables(models)
    if not arguments:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in made.items()))
    elif arguments == ["--update"]:
        PAGE.write_text(filled(PAGE, made))
        FIGURE.write_text(figure(models))
    else:
        bad = [f"{what}, K = {k}, depth {depth}, {n}: formula {computed:.4g}, counted {measured:.4g}"
               for what, k, depth, n, measured, computed in counter_rows(models["qwen3-30b-a3b"])
               if abs(computed / measured - 1) > 0.005]
        old = stale(((PAGE, filled(PAGE, made)), (FIGURE, figure(models))), ROOT)
        print("\n".join(bad + old) or "formulas, page and figure agree")
        return 1 if bad or old else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
