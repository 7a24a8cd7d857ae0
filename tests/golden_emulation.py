"""PyTorch emulation of where cpuinfer rounds, to predict its error (make_goldens.py --emulate)."""

import torch


def nearest(x):
    return x.bfloat16().float()


def stochastic(generator):
    """bf16 rounding up or down at random: twice the error variance of rounding to nearest."""
    def rounded(x):
        noise = torch.randint(0, 65536, x.shape, generator=generator, dtype=torch.int32)
        return ((x.contiguous().view(torch.int32) + noise) & -65536).view(torch.float32)
    return rounded


def emulate(model, weights, tokens, positions, rounded, dtype):
    """The engine's contract: float32 residual and sums; `rounded` is applied to GEMM inputs only
    (normed activations, q, k, v, attention probabilities and outputs, SiLU products). Written
    apart from Transformers on purpose: with no rounding, in float64, it checks the reference."""
    c, count = model.config, len(tokens)
    w = {name: tensor.to(dtype) for name, tensor in weights.items()}
    d, heads, kv_heads = model.model.layers[0].self_attn.head_dim, c.num_attention_heads, \
        c.num_key_value_heads
    with torch.no_grad():
        cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(count)[None])
    cos, sin = cos[0, :, None].to(dtype), sin[0, :, None].to(dtype)

    def norm(x, name):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + c.rms_norm_eps) * w[name + ".weight"]

    def linear(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def rotate(x):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    def mlp(x, p):
        product = torch.nn.functional.silu(linear(x, p + ".gate_proj")) * linear(x, p + ".up_proj")
        return linear(rounded(product), p + ".down_proj")

    x = w["model.embed_tokens.weight"][torch.tensor(tokens)]
    for layer in range(c.num_hidden_layers):
        p = f"model.layers.{layer}."
        a = rounded(norm(x, p + "input_layernorm"))
        split = lambda name, n: linear(a, f"{p}self_attn.{name}_proj").view(count, n, d)
        q = rounded(rotate(norm(split("q", heads), p + "self_attn.q_norm")))
        k = rounded(rotate(norm(split("k", kv_heads), p + "self_attn.k_norm")))
        v = rounded(split("v", kv_heads))
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * d ** -0.5
        scores += torch.full((count, count), -torch.inf, dtype=dtype).triu(1)
        # Pages of 256 tokens have their own maximum; pages are combined afterwards.
        top, out, total = None, None, None
        for begin in range(0, count, 256):
            s = scores[..., begin:begin + 256]
            m = s.amax(-1, keepdim=True)
            e = torch.exp(s - m.clamp_min(-1e30))
            part, l = rounded(e) @ v[begin:begin + 256].transpose(0, 1), e.sum(-1, keepdim=True)
            if top is None:
                top, out, total = m, part, l
                continue
            both = torch.maximum(top, m)
            out = out * torch.exp(top - both) + part * torch.exp(m - both)
            total = total * torch.exp(top - both) + l * torch.exp(m - both)
            top = both
        attended = rounded((out / total).transpose(0, 1).reshape(count, heads * d))
        x = x + linear(attended, p + "self_attn.o_proj")
        b = rounded(norm(x, p + "post_attention_layernorm"))
        if p + "mlp.gate.weight" not in w:
            x = x + mlp(b, p + "mlp")
            continue
        chances, chosen = torch.softmax(linear(b, p + "mlp.gate"), -1).topk(c.num_experts_per_tok)
        if c.norm_topk_prob:
            chances = chances / chances.sum(-1, keepdim=True)
        gates = torch.zeros(count, c.num_experts, dtype=dtype).scatter(1, chosen, chances)
        for expert in range(c.num_experts):
            x = x + gates[:, expert, None] * mlp(b, f"{p}mlp.experts.{expert}")
    head = "model.embed_tokens" if c.tie_word_embeddings else "lm_head"
    return linear(rounded(norm(x, "model.norm")), head)[positions]
