"""The fixture table: one small random configuration per thing the runtime must get right.

Owns: names, Hugging Face configurations, seeds, GGUF variants. Must not know: how a model is run
(reference.py) or written (gguf_out.py). Fixtures with equal `seed` and `config` hold the same weights,
so two GGUF layouts of one model must give the same logits.
"""

from dataclasses import dataclass, field

import transformers as hf

VOCAB = 128
BYTE_VOCAB = 288


@dataclass(frozen=True)
class Fixture:
    """One committed pair NAME.gguf + NAME.json."""

    name: str
    arch: str  # general.architecture
    model: type  # transformers class
    config: dict  # its configuration
    seed: int
    exercises: str
    store: str = "f16"  # block type of matrices; vectors and routers are always f32
    experts: str = "stacked"  # or "split": one tensor per expert, the Mixtral files of 2023
    mla: str = "split"  # or "legacy": attn_kv_b and no *_mla keys, files before April 2025
    pre: str | None = None  # byte-level gpt2 tokenizer with this pre-tokenizer, else none
    extra: dict = field(default_factory=dict)  # further metadata, keys after "<arch>."
    peer: str = "agrees"  # what llama.cpp is known to do with this file

    def build_config(self):
        """The transformers configuration object."""
        return self.model.config_class(
            **{"attn_implementation": "eager", "experts_implementation": "eager"} | self.config
        )


def rope(theta: float, kind: str = "default", **scaling) -> dict:
    """`rope_parameters` of transformers 5."""
    return {"rope_type": kind, "rope_theta": theta, **scaling}


def dense(**changes) -> dict:
    """A dense decoder with grouped-query attention: 4 heads over 2 key-value heads of 16."""
    base = dict(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=None,
        rope_parameters=rope(10000.0),
    )
    return base | changes


def deepseek(**changes) -> dict:
    """Multi-head latent attention, one dense layer, then experts with a shared part."""
    base = dense(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, rms_norm_eps=1e-6,
        q_lora_rank=32, kv_lora_rank=64, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=64,
        first_k_dense_replace=1, n_routed_experts=12, num_experts_per_tok=3, n_shared_experts=1,
        moe_intermediate_size=32, n_group=1, topk_group=1, routed_scaling_factor=1.0,
        norm_topk_prob=False,
    )
    return base | changes


def deepseek_v2(**changes) -> dict:
    """V2 rules: softmax scores, never normalised, group score = best expert."""
    return deepseek() | dict(topk_method="greedy") | changes


def deepseek_v3(**changes) -> dict:
    """V3 rules: sigmoid scores plus bias, group score = best two, normalised, then scaled."""
    return deepseek(num_mtp_layers=0, norm_topk_prob=True, routed_scaling_factor=2.5) | changes


LITE = deepseek_v2(q_lora_rank=None, n_routed_experts=8, n_shared_experts=2, n_group=None, topk_group=None)
MIXTRAL = dense(num_local_experts=6, num_experts_per_tok=2, intermediate_size=64, sliding_window=None)
QWEN_MOE = dense(
    head_dim=32, num_attention_heads=2, num_key_value_heads=1, num_experts=10, num_experts_per_tok=3,
    moe_intermediate_size=32, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True,
    rms_norm_eps=1e-6,
)
YARN_V2 = rope(
    100.0, "yarn", factor=40.0, original_max_position_embeddings=16, beta_fast=32, beta_slow=1,
    mscale=0.707, mscale_all_dim=0.707,
)
YARN_V3 = rope(
    10000.0, "yarn", factor=40.0, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1,
    mscale=1.0, mscale_all_dim=1.0,
)
YARN_QWEN = rope(10000.0, "yarn", factor=4.0, original_max_position_embeddings=16)
LLAMA3 = rope(
    10000.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)

DENSE_FIXTURES = [
    Fixture("llama", "llama", hf.LlamaForCausalLM, dense(vocab_size=BYTE_VOCAB), 1,
            "grouped-query attention, untied output, q/k permutation, byte tokenizer", "f32", pre="gpt-2"),
    Fixture("llama_tied", "llama", hf.LlamaForCausalLM, dense(tie_word_embeddings=True, head_dim=32), 2,
            "tied output, head_dim != hidden/heads"),
    Fixture("llama_rope_llama3", "llama", hf.LlamaForCausalLM, dense(head_dim=32, rope_parameters=LLAMA3), 3,
            "rope_freqs.weight"),
    Fixture("llama_rope_linear", "llama", hf.LlamaForCausalLM,
            dense(rope_parameters=rope(10000.0, "linear", factor=4.0)), 4, "linear rope scaling"),
    Fixture("llama_rope_yarn", "llama", hf.LlamaForCausalLM,
            dense(head_dim=32, rope_parameters=YARN_QWEN), 5, "YaRN on interleaved pairs"),
    Fixture("llama_bias", "llama", hf.LlamaForCausalLM, dense(attention_bias=True, mlp_bias=True), 6,
            "biases on q, k (permuted), v, o, gate, up, down"),
    Fixture("qwen2", "qwen2", hf.Qwen2ForCausalLM, dense(vocab_size=BYTE_VOCAB, tie_word_embeddings=True), 7,
            "q/k/v biases, half-split rope, tied output, byte tokenizer", "f32", pre="qwen2"),
    Fixture("qwen2_rope_yarn", "qwen2", hf.Qwen2ForCausalLM,
            dense(num_attention_heads=2, num_key_value_heads=1, rope_parameters=YARN_QWEN), 8,
            "YaRN on half-split pairs"),
    Fixture("qwen3", "qwen3", hf.Qwen3ForCausalLM, dense(head_dim=32, rms_norm_eps=1e-6), 9,
            "q/k norm before rope, head_dim != hidden/heads"),
]

MOE_FIXTURES = [
    Fixture("mixtral", "llama", hf.MixtralForCausalLM, MIXTRAL, 10, "softmax top-2 renormalised, stacked experts"),
    Fixture("mixtral_per_expert", "llama", hf.MixtralForCausalLM, MIXTRAL, 10,
            "one tensor per expert: blk.N.ffn_gate.E.weight", experts="split", peer="refuses the old layout"),
    Fixture("qwen3moe", "qwen3moe", hf.Qwen3MoeForCausalLM, QWEN_MOE, 11, "softmax top-3 renormalised, q/k norm"),
    Fixture("qwen3moe_unnormalised", "qwen3moe", hf.Qwen3MoeForCausalLM, QWEN_MOE | dict(norm_topk_prob=False), 12,
            "expert_weights_norm = false is followed", extra={"expert_weights_norm": False},
            peer="always normalises qwen3moe"),
]

DEEPSEEK_FIXTURES = [
    Fixture("deepseek2_lite", "deepseek2", hf.DeepseekV2ForCausalLM, LITE, 20,
            "no q_lora, greedy softmax, two shared experts in one, split MLA"),
    Fixture("deepseek2_lite_legacy", "deepseek2", hf.DeepseekV2ForCausalLM, LITE, 20,
            "legacy attn_kv_b, no *_mla keys, no gating key", mla="legacy"),
    Fixture("deepseek2_v2", "deepseek2", hf.DeepseekV2ForCausalLM,
            deepseek_v2(topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=4.0,
                        num_hidden_layers=3), 21,
            "q_lora, groups scored by their best expert, scaling without normalisation",
            peer="scores groups by the best two (V3's rule)"),
    Fixture("deepseek2_v2_yarn", "deepseek2", hf.DeepseekV2ForCausalLM,
            LITE | dict(qk_rope_head_dim=32, rope_parameters=YARN_V2), 22, "YaRN with V2's mscale 0.707"),
    Fixture("deepseek2_v3", "deepseek2", hf.DeepseekV3ForCausalLM, deepseek_v3(n_group=4, topk_group=2), 23,
            "sigmoid + negative bias, groups scored by best two, masked with -inf, normalised, scaled"),
    Fixture("deepseek2_v3_yarn", "deepseek2", hf.DeepseekV3ForCausalLM,
            deepseek_v3(n_group=4, topk_group=2, rope_parameters=YARN_V3, num_hidden_layers=3), 24,
            "YaRN with V3's mscale 1, ramp inside the rotated dimensions"),
    Fixture("deepseek2_kimi", "deepseek2", hf.DeepseekV3ForCausalLM,
            deepseek_v3(n_routed_experts=16, num_experts_per_tok=4, routed_scaling_factor=2.827), 25,
            "Kimi-K2: V3 with one group"),
]

FIXTURES = DENSE_FIXTURES + MOE_FIXTURES + DEEPSEEK_FIXTURES
