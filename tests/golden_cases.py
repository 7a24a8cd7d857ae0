"""The golden cases: which configurations make_goldens.py makes checkpoints and logits for."""

import dataclasses

DENSE = dict(
    architectures=["Qwen3ForCausalLM"], model_type="qwen3", vocab_size=72, hidden_size=32,
    intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, hidden_act="silu", max_position_embeddings=2048, rms_norm_eps=1e-6,
    rope_theta=10000.0, rope_scaling=None, attention_bias=False, tie_word_embeddings=False,
    use_sliding_window=False, sliding_window=None)
MOE = {**DENSE, **dict(
    architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", num_experts=8,
    num_experts_per_tok=2, moe_intermediate_size=12, norm_topk_prob=True, decoder_sparse_step=1,
    mlp_only_layers=[])}
# One layer is enough where only the rotary embedding differs. A small theta and a short original
# length put the yarn ramp inside the frequencies instead of at their end.
ROPE = dict(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
            hidden_size=40, intermediate_size=24, rope_theta=100.0, max_position_embeddings=48)


@dataclasses.dataclass
class Case:
    """One row of the golden set. `checkpoint` names another case whose weights are used."""
    name: str
    covers: str
    config: dict
    spelling: str = "new"  # "new": as Transformers 5 saves; "old": as published Qwen3; "bare"
    tokens: int = 96
    positions: list | None = None  # where logits are kept; None: everywhere
    dtype: str = "bfloat16"
    shards: int = 1
    experts: int | None = None  # num_experts_per_tok at run time
    checkpoint: str | None = None
    scales: dict = dataclasses.field(default_factory=dict)
    # False: the tokens are random, with whatever near-ties they bring (see choose_tokens).
    settled: bool = True
    # Wrong readings of the config that the golden must tell from the right one.
    mutants: dict = dataclasses.field(default_factory=dict)


def rope(kind, **parameters):
    return dict(rope_type=kind, **parameters)


def rope_case(name, covers, base, parameters, mutants, spelling="new", tokens=96, **changes):
    config = {**base, **ROPE, **changes, "rope_scaling": parameters}
    if "num_experts" in config:
        config["num_experts"] = 4
    theta = config["rope_theta"]
    readings = {key: {"rope_parameters": {"rope_theta": theta, **value}}
                for key, value in mutants.items()}
    return Case(name, covers, config, spelling=spelling, tokens=tokens, mutants=readings)


NO_SCALING = {"no scaling": rope("default")}
# 256 is the size of an attention page, 1024 of a superblock: keep both sides of each border.
LONG_POSITIONS = sorted({0, 1, 2, *range(253, 260), *range(509, 516), *range(766, 771),
                         *range(1020, 1030), *range(1278, 1284), *range(1290, 1300),
                         *range(16, 1300, 20)})

CASES = [
    Case("dense_basic", "Qwen3ForCausalLM, GQA 2, new spelling (dtype, rope_parameters)", DENSE,
         mutants={"theta": {"rope_parameters": rope("default", rope_theta=1e6)}}),
    Case("dense_old_spelling", "old spelling (torch_dtype, rope_theta, rope_scaling null), "
         "rope_theta 1e6, GQA 1, hidden 48",
         {**DENSE, "rope_theta": 1e6, "num_key_value_heads": 3, "num_attention_heads": 3,
          "hidden_size": 48, "intermediate_size": 40}, spelling="old",
         mutants={"theta": {"rope_parameters": rope("default", rope_theta=1e4)}}),
    Case("dense_bias_wide_head", "attention_bias on q, k, v and o; head_dim 80 with hidden 96",
         {**DENSE, "num_hidden_layers": 1, "hidden_size": 96, "head_dim": 80, "vocab_size": 64,
          "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24,
          "attention_bias": True}, mutants={"no bias": {"attention_bias": False}}),
    Case("dense_tied_gqa8", "tied embeddings (no lm_head tensor), GQA 8, hidden 80",
         {**DENSE, "hidden_size": 80, "num_attention_heads": 8, "num_key_value_heads": 1,
          "intermediate_size": 32, "num_hidden_layers": 1, "tie_word_embeddings": True},
         scales={"embed": 0.2, "branch": 1.2}),
    Case("dense_eps", "rms_norm_eps 1e-5, with activations small enough for it to count",
         {**DENSE, "rms_norm_eps": 1e-5, "num_hidden_layers": 1},
         scales={"embed": 0.005, "branch": 0.005, "qk": 0.005},
         mutants={"eps 1e-6": {"rms_norm_eps": 1e-6}}),
    Case("dense_prime_sizes", "hidden 37, intermediate 23, vocab 101, head_dim 6, GQA 4",
         {**DENSE, "hidden_size": 37, "intermediate_size": 23, "vocab_size": 101, "head_dim": 6,
          "num_attention_heads": 4, "num_key_value_heads": 1}),
    Case("moe_basic", "Qwen3MoeForCausalLM, norm_topk_prob true, 2 of 8 experts, GQA 3 (6 on 2)",
         {**MOE, "num_attention_heads": 6},
         mutants={"norm_topk_prob false": {"norm_topk_prob": False}}),
    Case("moe_basic_experts1", "moe_basic with --experts 1", {}, checkpoint="moe_basic",
         experts=1, mutants={"override ignored": {"num_experts_per_tok": 2}}),
    Case("moe_basic_experts3", "moe_basic with --experts 3", {}, checkpoint="moe_basic",
         experts=3, mutants={"override ignored": {"num_experts_per_tok": 2}}),
    Case("moe_basic_experts8", "moe_basic with --experts 8: all of them", {},
         checkpoint="moe_basic", experts=8,
         mutants={"override ignored": {"num_experts_per_tok": 2}}),
    Case("moe_no_norm", "norm_topk_prob false, GQA 1, old spelling",
         {**MOE, "norm_topk_prob": False, "num_key_value_heads": 4, "num_hidden_layers": 1},
         spelling="old", scales={"expert": 1.6},
         mutants={"norm_topk_prob true": {"norm_topk_prob": True}}),
    Case("moe_no_norm_experts4", "norm_topk_prob false with --experts 4 of 8", {},
         checkpoint="moe_no_norm", experts=4,
         mutants={"override ignored": {"num_experts_per_tok": 2}}),
    Case("moe_many_experts", "8 of 32 experts, GQA 8, old spelling",
         {**MOE, "num_experts": 32, "num_experts_per_tok": 8, "moe_intermediate_size": 8,
          "num_attention_heads": 8, "num_key_value_heads": 1, "num_hidden_layers": 1},
         spelling="old", mutants={"norm_topk_prob false": {"norm_topk_prob": False}}),
    Case("moe_many_experts12", "moe_many_experts with --experts 12", {},
         checkpoint="moe_many_experts", experts=12,
         mutants={"override ignored": {"num_experts_per_tok": 8}}),
    Case("moe_many_experts16", "moe_many_experts with --experts 16", {},
         checkpoint="moe_many_experts", experts=16,
         mutants={"override ignored": {"num_experts_per_tok": 8}}),
    Case("moe_near_ties", "moe_many_experts on 256 plain random tokens, near-ties included", {},
         checkpoint="moe_many_experts", tokens=256, settled=False),
    Case("moe_mlp_only_layers", "mlp_only_layers [0], attention_bias, tied embeddings, eps 1e-5",
         {**MOE, "mlp_only_layers": [0], "attention_bias": True, "tie_word_embeddings": True,
          "rms_norm_eps": 1e-5, "num_experts": 4, "intermediate_size": 40},
         scales={"embed": 0.3}, mutants={"no bias": {"attention_bias": False}}),
    Case("moe_sparse_step2", "decoder_sparse_step 2 and mlp_only_layers [3]: of 4 layers only "
         "layer 1 is sparse; old spelling",
         {**MOE, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3],
          "num_experts": 4, "hidden_size": 24, "intermediate_size": 28}, spelling="old"),
    Case("moe_odd_sizes", "hidden 40, moe_intermediate 24, vocab 251, head_dim 10, 3 of 5 experts",
         {**MOE, "hidden_size": 40, "moe_intermediate_size": 24, "vocab_size": 251,
          "head_dim": 10, "num_experts": 5, "num_experts_per_tok": 3, "num_hidden_layers": 1},
         tokens=48),
    Case("moe_defaults", "no head_dim, norm_topk_prob, rms_norm_eps, rope or tie key: "
         "Transformers' defaults hold (hidden / heads, false, 1e-6, theta 10000, untied)",
         {**MOE, "num_hidden_layers": 1, "hidden_size": 48, "head_dim": 12}, spelling="bare",
         mutants={"norm_topk_prob true": {"norm_topk_prob": True}}),
    Case("moe_sharded", "three shards with model.safetensors.index.json, generation_config.json",
         {**MOE, "num_experts": 4, "num_hidden_layers": 2}, shards=3, spelling="old"),
    Case("moe_float16", "float16 checkpoint; the reference starts from its bf16 rounding",
         {**MOE, "num_experts": 4, "num_hidden_layers": 1}, dtype="float16"),
    Case("dense_float32", "float32 checkpoint; the reference starts from its bf16 rounding",
         {**DENSE, "num_hidden_layers": 1}, dtype="float32", spelling="old"),
    rope_case("rope_linear2", "linear, factor 2, old spelling with the key 'type'", DENSE,
              dict(type="linear", factor=2.0), NO_SCALING, spelling="old"),
    rope_case("rope_linear4", "linear, factor 4, integer factor, MoE", MOE,
              rope("linear", factor=4), NO_SCALING, max_position_embeddings=24),
    rope_case("rope_dynamic2", "dynamic, factor 2, twice max_position_embeddings", DENSE,
              rope("dynamic", factor=2.0), NO_SCALING),
    Case("rope_dynamic2_short", "rope_dynamic2 within max_position_embeddings: base unchanged", {},
         checkpoint="rope_dynamic2", tokens=44,
         mutants={"base for 96 tokens": {"rope_parameters": rope(
             "default", rope_theta=100.0 * 3 ** (32 / 30))}}),
    rope_case("rope_dynamic4", "dynamic, factor 4, 3.5 times max_position_embeddings, MoE, old "
              "spelling", MOE, rope("dynamic", factor=4.0), NO_SCALING, spelling="old",
              max_position_embeddings=24, tokens=84),
    rope_case("rope_yarn2", "yarn, factor 2, default attention_factor and betas, MoE", MOE,
              rope("yarn", factor=2.0, original_max_position_embeddings=48),
              {**NO_SCALING, "attention_factor 1": rope(
                  "yarn", factor=2.0, original_max_position_embeddings=48, attention_factor=1.0)}),
    rope_case("rope_yarn4", "yarn, factor 4, original length below max_position_embeddings as on "
              "Qwen3's card, old spelling", DENSE,
              rope("yarn", factor=4.0, original_max_position_embeddings=24),
              {**NO_SCALING, "original from max_position_embeddings": rope(
                  "yarn", factor=4.0, original_max_position_embeddings=30)},
              spelling="old", max_position_embeddings=30),
    rope_case("rope_yarn_explicit", "yarn, factor 4, explicit attention_factor 0.85, beta_fast 8, "
              "beta_slow 0.5", DENSE,
              rope("yarn", factor=4.0, original_max_position_embeddings=24, attention_factor=0.85,
                   beta_fast=8, beta_slow=0.5),
              {"default attention_factor": rope("yarn", factor=4.0, beta_fast=8, beta_slow=0.5,
                                                original_max_position_embeddings=24),
               "default betas": rope("yarn", factor=4.0, attention_factor=0.85,
                                     original_max_position_embeddings=24)}),
    rope_case("rope_yarn_no_truncate", "yarn, factor 4, truncate false, betas 4 and 1", DENSE,
              rope("yarn", factor=4.0, original_max_position_embeddings=24, truncate=False,
                   beta_fast=4.0, beta_slow=1.0),
              {"truncate": rope("yarn", factor=4.0, beta_fast=4.0, beta_slow=1.0,
                                original_max_position_embeddings=24)}),
    rope_case("rope_yarn_no_original", "yarn, factor 2, original length taken from "
              "max_position_embeddings, rope_theta 1e6, old spelling", DENSE,
              rope("yarn", factor=2.0), NO_SCALING, spelling="old", rope_theta=1e6),
    rope_case("rope_yarn_mscale", "yarn, factor 4, mscale 0.5 and mscale_all_dim 1.5, MoE", MOE,
              rope("yarn", factor=4.0, original_max_position_embeddings=24, mscale=0.5,
                   mscale_all_dim=1.5),
              {"mscale ignored": rope("yarn", factor=4.0, original_max_position_embeddings=24)}),
    Case("long_dense_600", "600 tokens in two layers: three attention pages", {**DENSE,
         "head_dim": 8, "vocab_size": 64}, tokens=600,
         positions=[p for p in LONG_POSITIONS if p < 600] + list(range(590, 600)),
         mutants={"theta": {"rope_parameters": rope("default", rope_theta=1e6)}}),
    Case("long_moe_1300", "1,300 tokens: six attention pages, two superblocks, one MoE layer",
         {**MOE, "num_hidden_layers": 1, "num_experts": 4}, tokens=1300, positions=LONG_POSITIONS,
         mutants={"theta": {"rope_parameters": rope("default", rope_theta=1e6)}}),
]
BY_NAME = {case.name: case for case in CASES}
