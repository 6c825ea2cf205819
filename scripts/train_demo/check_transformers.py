"""Owns the proof that `model.py` computes what transformers computes.

Loads the same weights (random, or a checkpoint with --checkpoint) into
`DeepseekV2ForCausalLM` and `LlamaForCausalLM` and compares logits in float32.
"""

import argparse

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from model import Draft, DraftConfig, MoE, Target, TargetConfig

LIMIT = 1e-3


def hf_target(model):
    c = model.c
    hf = DeepseekV2ForCausalLM(
        DeepseekV2Config(
            vocab_size=c.vocab,
            hidden_size=c.hidden,
            intermediate_size=c.dense_ff,
            moe_intermediate_size=c.expert_ff,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.heads,
            n_shared_experts=1,
            n_routed_experts=c.experts,
            routed_scaling_factor=1.0,
            kv_lora_rank=c.kv_lora,
            q_lora_rank=c.q_lora,
            qk_rope_head_dim=c.rope,
            v_head_dim=c.v_head,
            qk_nope_head_dim=c.nope,
            topk_method="greedy",
            num_experts_per_tok=c.experts_used,
            first_k_dense_replace=c.dense_layers,
            norm_topk_prob=False,
            max_position_embeddings=c.context,
            rms_norm_eps=c.eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            tie_word_embeddings=False,
        )
    )
    state = {
        "model.embed_tokens.weight": model.embed,
        "model.norm.weight": model.norm,
        "lm_head.weight": model.head,
    }
    for i, b in enumerate(model.blocks):
        p = f"model.layers.{i}."
        state |= {
            p + "input_layernorm.weight": b.attn_norm,
            p + "post_attention_layernorm.weight": b.ffn_norm,
            p + "self_attn.q_a_proj.weight": b.attn.q_a,
            p + "self_attn.q_a_layernorm.weight": b.attn.q_a_norm,
            p + "self_attn.q_b_proj.weight": b.attn.q_b,
            p + "self_attn.kv_a_proj_with_mqa.weight": b.attn.kv_a,
            p + "self_attn.kv_a_layernorm.weight": b.attn.kv_a_norm,
            p + "self_attn.kv_b_proj.weight": b.attn.kv_b,
            p + "self_attn.o_proj.weight": b.attn.out,
        }
        gated, name = b.ffn, p + "mlp."
        if isinstance(b.ffn, MoE):
            state |= {
                p + "mlp.gate.weight": b.ffn.router,
                p + "mlp.experts.gate_up_proj": b.ffn.gate_up,
                p + "mlp.experts.down_proj": b.ffn.down,
            }
            gated, name = b.ffn.shared, p + "mlp.shared_experts."
        state |= {
            name + "gate_proj.weight": gated.gate,
            name + "up_proj.weight": gated.up,
            name + "down_proj.weight": gated.down,
        }
    hf.load_state_dict(state, strict=True)
    return hf.eval()


def hf_draft(model):
    c = model.c
    hf = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab,
            hidden_size=c.hidden,
            intermediate_size=c.ff,
            num_hidden_layers=c.layers,
            num_attention_heads=c.heads,
            num_key_value_heads=c.heads,
            max_position_embeddings=c.context,
            rms_norm_eps=c.eps,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            tie_word_embeddings=True,
        )
    )
    state = {
        "model.embed_tokens.weight": model.embed,
        "lm_head.weight": model.embed,
        "model.norm.weight": model.norm,
    }
    for i, b in enumerate(model.blocks):
        p = f"model.layers.{i}."
        state |= {
            p + "input_layernorm.weight": b.attn_norm,
            p + "post_attention_layernorm.weight": b.ffn_norm,
            p + "self_attn.q_proj.weight": b.q,
            p + "self_attn.k_proj.weight": b.k,
            p + "self_attn.v_proj.weight": b.v,
            p + "self_attn.o_proj.weight": b.out,
            p + "mlp.gate_proj.weight": b.ffn.gate,
            p + "mlp.up_proj.weight": b.ffn.up,
            p + "mlp.down_proj.weight": b.ffn.down,
        }
    hf.load_state_dict(state, strict=True)
    return hf.eval()


@torch.no_grad()
def compare(name, model, hf, ids):
    ours = model.logits(model(ids)[0])
    theirs = hf(ids, use_cache=False).logits.float()
    # The cached, token-by-token path must agree with the block path too.
    caches = [{} for _ in range(model.c.layers)]
    cut = ids.shape[1] // 2
    steps = [model.logits(model(ids[:, :cut], caches)[0])]
    for t in range(cut, ids.shape[1]):
        steps.append(model.logits(model(ids[:, t : t + 1], caches, t)[0]))
    block = (ours - theirs).abs().max().item()
    cached = (torch.cat(steps, 1) - theirs).abs().max().item()
    spread = theirs.std().item()
    print(f"{name}: max logit difference {block:.2e} (cached path {cached:.2e}), logit std {spread:.2f}")
    assert max(block, cached) < LIMIT, f"{name} departs from transformers"


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--checkpoint", help="a checkpoint of train.py; random weights without it")
    args = ap.parse_args()
    torch.manual_seed(1)
    target, draft = Target(TargetConfig()), Draft(DraftConfig())
    if args.checkpoint:
        ck = torch.load(args.checkpoint, map_location="cpu", weights_only=False)
        target.load_state_dict(ck["target"])
        draft.load_state_dict(ck["draft"])
    ids = torch.randint(0, 4096, (2, 96))
    compare("target", target, hf_target(target), ids)
    compare("draft", draft, hf_draft(draft), ids)


if __name__ == "__main__":
    main()
