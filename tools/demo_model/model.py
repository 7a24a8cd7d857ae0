# SPDX-License-Identifier: Apache-2.0
"""Training-time Qwen3-MoE for two CPU cores.

Same arithmetic as transformers' Qwen3MoeForCausalLM (evaluate.py compares
the logits), but the experts run as one hand-written autograd function over tokens
sorted by expert, so a step is a few dozen dense bf16 products and no scatter.
Weights are fp32; every product is bf16 with fp32 accumulation.
"""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    vocab_size: int = 2560
    hidden_size: int = 256
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    num_experts: int = 16
    num_experts_per_tok: int = 4
    moe_intermediate_size: int = 64
    rope_theta: float = 100000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 4096

    @classmethod
    def load(cls, path: Path) -> "Config":
        """From the config.json of an exported model."""
        have = json.loads(Path(path).read_text())
        return cls(**{f.name: have[f.name] for f in fields(cls)})

    def to_hf(self, eos: int, pad: int) -> dict:
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": pad,
            "decoder_sparse_step": 1,
            "dtype": "bfloat16",
            "eos_token_id": eos,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": 4 * self.moe_intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "max_window_layers": self.num_hidden_layers,
            "mlp_only_layers": [],
            "model_type": "qwen3_moe",
            "moe_intermediate_size": self.moe_intermediate_size,
            "norm_topk_prob": True,
            "num_attention_heads": self.num_attention_heads,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "output_router_logits": False,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "router_aux_loss_coef": 0.01,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vocab_size": self.vocab_size,
        }


class ExpertMLP(torch.autograd.Function):
    """y[n] = sum_k w[n,k] * down_e(silu(gate_e x) * up_e x), e = idx[n,k].

    gate_up: [E, 2I, D], down: [E, D, I]; x: [N, D]; everything bf16 but w.
    Tokens are sorted by expert and every expert's rows are padded to a multiple
    of PAD, so that the products meet few distinct shapes: oneDNN compiles a
    kernel per shape, and a kernel per exact count costs 30 times the product.
    """

    PAD = 128

    @staticmethod
    def forward(ctx, x, w, idx, gate_up, down):
        n, k = idx.shape
        e, i2, d = gate_up.shape
        flat = idx.reshape(-1)
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=e)
        rows = (counts + ExpertMLP.PAD - 1) // ExpertMLP.PAD * ExpertMLP.PAD
        ends = rows.cumsum(0)
        es = flat.index_select(0, order)
        slot_sorted = torch.arange(n * k) + (ends - rows - (counts.cumsum(0) - counts))[es]
        slot = torch.empty_like(order)
        slot[order] = slot_sorted
        ends = ends.tolist()
        src = torch.zeros(ends[-1], dtype=torch.long)
        src[slot_sorted] = order // k
        ws = torch.zeros(ends[-1], dtype=x.dtype)
        ws[slot_sorted] = w.detach().reshape(-1).index_select(0, order).to(x.dtype)
        spans = [(j, a, b) for j, (a, b) in enumerate(zip([0] + ends, ends)) if b > a]
        xs = x.index_select(0, src)  # padding rows hold token 0, unused
        gu = torch.empty(ends[-1], i2, dtype=x.dtype)
        for j, a, b in spans:
            torch.mm(xs[a:b], gate_up[j].t(), out=gu[a:b])
        h = glu(gu)
        ys = torch.empty(ends[-1], d, dtype=x.dtype)
        for j, a, b in spans:
            torch.mm(h[a:b], down[j].t(), out=ys[a:b])
        y = ys.index_select(0, slot).view(n, k, d)
        out = torch.bmm(w.to(x.dtype).unsqueeze(1), y).squeeze(1)
        ctx.save_for_backward(xs, gu, h, y, slot, src, ws, gate_up, down)
        ctx.spans = spans
        return out

    @staticmethod
    def backward(ctx, gout):
        xs, gu, h, y, slot, src, ws, gate_up, down = ctx.saved_tensors
        n, k, d = y.shape
        gout = gout.contiguous()
        gw = torch.bmm(y, gout.unsqueeze(2)).squeeze(2).float()
        gys = gout.index_select(0, src).mul_(ws[:, None])  # zero on padding
        gh, gdown = torch.empty_like(h), torch.zeros_like(down)
        for j, a, b in ctx.spans:
            torch.mm(gys[a:b], down[j], out=gh[a:b])
            torch.mm(gys[a:b].t(), h[a:b], out=gdown[j])
        ggu = glu_backward(gu, gh)
        gxs, ggate_up = torch.empty_like(xs), torch.zeros_like(gate_up)
        for j, a, b in ctx.spans:
            torch.mm(ggu[a:b], gate_up[j], out=gxs[a:b])
            torch.mm(ggu[a:b].t(), xs[a:b], out=ggate_up[j])
        gx = gxs.index_select(0, slot).view(n, k, d).sum(1)
        return gx, gw, None, ggate_up, gdown


@torch.compile(dynamic=True)
def glu(gu):
    g, u = gu.float().chunk(2, dim=-1)
    return (F.silu(g) * u).to(gu.dtype)


@torch.compile(dynamic=True)
def glu_backward(gu, gh):
    g, u = gu.float().chunk(2, dim=-1)
    gh = gh.float()
    sg = torch.sigmoid(g)
    act = g * sg
    return torch.cat([gh * u * (sg + act * (1 - sg)), gh * act], dim=-1).to(gu.dtype)


def rms_norm(x, weight, eps):
    xf = x.float()
    xf = xf * torch.rsqrt(xf.pow(2).mean(-1, keepdim=True) + eps)
    return (xf * weight).to(x.dtype)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        d, q, kv = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        e, i = c.num_experts, c.moe_intermediate_size
        self.c = c

        def mat(*shape):
            return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)

        self.ln1 = nn.Parameter(torch.ones(d))
        self.ln2 = nn.Parameter(torch.ones(d))
        self.q_norm = nn.Parameter(torch.ones(c.head_dim))
        self.k_norm = nn.Parameter(torch.ones(c.head_dim))
        self.wq, self.wk, self.wv = mat(q, d), mat(kv, d), mat(kv, d)
        self.wo = nn.Parameter(mat(d, q).data * 0.2)
        self.router = nn.Parameter(torch.randn(e, d) * 0.02)
        self.gate_up = mat(e, 2 * i, d)
        self.down = nn.Parameter(mat(e, d, i).data * 0.2)

    def forward(self, x, cos, sin, b, t):
        """x: [B*T, D] fp32; cos, sin: [B*T, 1, head_dim / 2]."""
        c = self.c
        q, k, v = qkv(x, self.ln1, self.wq, self.wk, self.wv, self.q_norm, self.k_norm, cos, sin, c.head_dim, c.rms_norm_eps)
        g = c.num_attention_heads // c.num_key_value_heads
        q, k, v = (z.view(b, t, -1, c.head_dim).transpose(1, 2) for z in (q, k, v))
        a = F.scaled_dot_product_attention(q, k.repeat_interleave(g, 1), v.repeat_interleave(g, 1), is_causal=True)
        a = a.transpose(1, 2).reshape(b * t, -1)
        x, h, w, idx, aux, load = route(x, a, self.wo, self.ln2, self.router, c.num_experts_per_tok, c.rms_norm_eps)
        y = ExpertMLP.apply(h, w, idx, self.gate_up.to(h.dtype), self.down.to(h.dtype))
        return x + y, aux, load


@torch.compile(dynamic=False)
def qkv(x, ln, wq, wk, wv, qn, kn, cos, sin, head_dim, eps):
    h, dt, n = rms_norm(x, ln, eps).to(torch.bfloat16), torch.bfloat16, x.shape[0]
    q = rms_norm(F.linear(h, wq.to(dt)).view(n, -1, head_dim).float(), qn, eps)
    k = rms_norm(F.linear(h, wk.to(dt)).view(n, -1, head_dim).float(), kn, eps)
    return rotate(q, cos, sin).to(dt), rotate(k, cos, sin).to(dt), F.linear(h, wv.to(dt))


@torch.compile(dynamic=False)
def route(x, a, wo, ln, router, topk, eps):
    x = x + F.linear(a, wo.to(torch.bfloat16))
    h = rms_norm(x, ln, eps)
    probs = F.linear(h, router).softmax(-1)
    w, idx = probs.topk(topk, dim=-1)
    w = w / w.sum(-1, keepdim=True)
    e = router.shape[0]
    load = F.one_hot(idx, e).sum(1).float().mean(0)
    aux = (load * probs.mean(0)).sum() * e / topk
    return x, h.to(torch.bfloat16), w, idx, aux, load


@torch.compile(dynamic=False)
def token_losses(x, norm, embed, targets, eps):
    h = rms_norm(x, norm, eps).to(torch.bfloat16)
    lg = F.linear(h, embed.to(torch.bfloat16)).float()
    return lg.logsumexp(-1) - lg.gather(1, targets[:, None]).squeeze(1), lg.argmax(-1)


class Model(nn.Module):
    """Residual stream in fp32, products in bf16."""

    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.embed = nn.Parameter(torch.randn(c.vocab_size, c.hidden_size) * 0.05)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = nn.Parameter(torch.ones(c.hidden_size))
        inv = c.rope_theta ** (-torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        ang = torch.arange(c.max_position_embeddings).float()[:, None] * inv[None]
        self.register_buffer("cos", ang.cos(), persistent=False)
        self.register_buffer("sin", ang.sin(), persistent=False)

    def hidden(self, ids):
        """[B, T] -> residual stream [B*T, D] before the final norm, aux loss, expert loads."""
        b, t = ids.shape
        cos = self.cos[:t].repeat(b, 1).unsqueeze(1)
        sin = self.sin[:t].repeat(b, 1).unsqueeze(1)
        x = F.embedding(ids.reshape(-1), self.embed)
        aux, loads = 0.0, []
        for layer in self.layers:
            x, a, load = layer(x, cos, sin, b, t)
            aux = aux + a
            loads.append(load)
        return x, aux / len(self.layers), torch.stack(loads)

    def forward(self, ids, targets):
        """Per-token losses and greedy predictions ([B*T] each), aux loss, loads."""
        x, aux, loads = self.hidden(ids)
        losses, pred = token_losses(x, self.norm, self.embed, targets.reshape(-1), self.c.rms_norm_eps)
        return losses, pred, aux, loads

    def hf_views(self) -> dict[str, torch.Tensor]:
        """The weights under the names of a Qwen3-MoE checkpoint."""
        s, i = {}, self.c.moe_intermediate_size
        s["model.embed_tokens.weight"] = self.embed
        s["model.norm.weight"] = self.norm
        for n, l in enumerate(self.layers):
            p = f"model.layers.{n}."
            s[p + "input_layernorm.weight"] = l.ln1
            s[p + "post_attention_layernorm.weight"] = l.ln2
            s[p + "self_attn.q_norm.weight"] = l.q_norm
            s[p + "self_attn.k_norm.weight"] = l.k_norm
            for m in "qkvo":
                s[p + f"self_attn.{m}_proj.weight"] = getattr(l, "w" + m)
            s[p + "mlp.gate.weight"] = l.router
            for e in range(self.c.num_experts):
                q = p + f"mlp.experts.{e}."
                s[q + "gate_proj.weight"] = l.gate_up[e, :i]
                s[q + "up_proj.weight"] = l.gate_up[e, i:]
                s[q + "down_proj.weight"] = l.down[e]
        return {k: v.detach() for k, v in s.items()}

    def hf_state(self) -> dict[str, torch.Tensor]:
        return {k: v.to(torch.bfloat16).clone().contiguous() for k, v in self.hf_views().items()}


class Muon(torch.optim.Optimizer):
    """Momentum + Newton-Schulz orthogonalisation, batched over experts."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                buf = self.state[p].setdefault("buf", torch.zeros_like(p))
                buf.lerp_(p.grad, 1 - group["momentum"])
                u = p.grad.lerp(buf, group["momentum"])
                x = u.to(torch.bfloat16)
                flip = x.shape[-2] > x.shape[-1]
                x = x.mT if flip else x
                x = x / (x.float().flatten(-2).norm(dim=-1)[..., None, None].to(x.dtype) + 1e-7)
                for _ in range(5):
                    a = x @ x.mT
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
                x = x.mT if flip else x
                scale = max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x.float(), alpha=-group["lr"] * scale)


@torch.no_grad()
def install_offset_heads(model: Model, freq: torch.Tensor):
    """Point the four heads of layer 0 at the tokens 1, 2, 3 and 4 places back.

    Recall needs exact looks a few tokens back (from a code to its key), and with
    normed queries and keys these grow slowly from noise. freq: how often each
    token occurs; it serves to find a direction in which all inputs are alike,
    which stands in for the bias that the projections do not have.
    """
    c, layer = model.c, model.layers[0]
    h = rms_norm(model.embed, layer.ln1, c.rms_norm_eps)
    freq = freq / freq.sum()
    cov = (h * freq[:, None]).T @ h + 1e-2 * torch.eye(c.hidden_size)
    const = torch.linalg.solve(cov, (h * freq[:, None]).sum(0))  # h @ const is about 1
    half, used = c.head_dim // 2, 10
    theta = c.rope_theta ** (-torch.arange(used).float() * 2 / c.head_dim)
    key = torch.zeros(c.head_dim)
    key[:used] = 1.0
    for j in range(c.num_key_value_heads):
        layer.wk[j * c.head_dim:(j + 1) * c.head_dim] = key[:, None] * const
    for j in range(c.num_attention_heads):
        query = torch.zeros(c.head_dim)
        query[:used], query[half:half + used] = torch.cos(-(j + 1) * theta), torch.sin(-(j + 1) * theta)
        layer.wq[j * c.head_dim:(j + 1) * c.head_dim] = query[:, None] * const
    layer.q_norm.fill_(2.0)
    layer.k_norm.fill_(2.0)


def optimizers(model: Model, lr_muon: float, lr_adam: float, wd: float):
    mats, sharp, rest = [], [], []
    for n, p in model.named_parameters():
        if n.endswith(("q_norm", "k_norm")):
            sharp.append(p)  # the only way to a sharp attention, so they may move faster
        elif p.ndim >= 2 and "embed" not in n and "router" not in n:
            mats.append(p)
        else:
            rest.append(p)
    return [Muon(mats, lr_muon, weight_decay=wd),
            torch.optim.AdamW([dict(params=rest), dict(params=sharp, lr=4 * lr_adam)], lr_adam, betas=(0.9, 0.98), weight_decay=0.0)]


def save_config(c: Config, path: Path, eos: int, pad: int):
    path.write_text(json.dumps(c.to_hf(eos, pad), indent=2) + "\n")


__all__ = ["Config", "Model", "install_offset_heads", "optimizers", "save_config", "asdict"]
