"""Writes a transformers model as GGUF with llama.cpp's names, layouts and keys.

Owns: the name table, the q/k permutation, stacked and split experts, the two MLA layouts, metadata.
Source of the conventions: llama.cpp's conversion/{base,llama,qwen,deepseek}.py at commit 0c1e57098.
"""

import math

import gguf
import numpy as np
import torch

NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b", "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
       "lm_head.weight": "output.weight"}


def tensors(fixture, model):
    """Yields (gguf name, float32 tensor, whether it takes the fixture's block type)."""
    config = model.config
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", llama3_factors(config), False
    for name, tensor in model.state_dict().items():
        if name in TOP:
            if name != "lm_head.weight" or not config.tie_word_embeddings:
                yield TOP[name], tensor, tensor.dim() > 1
            continue
        _, _, layer, rest = name.split(".", 3)
        for short, value in layer_tensors(fixture, config, rest, tensor):
            yield f"blk.{layer}.{short}", value, value.dim() > 1 and "gate_inp" not in short


def layer_tensors(fixture, config, name: str, tensor):
    """The GGUF tensors of one layer's transformers tensor, names after "blk.N."."""
    if name == "mlp.gate.e_score_correction_bias":
        yield "exp_probs_b.bias", tensor
    elif name.startswith("mlp.experts."):
        yield from expert_tensors(fixture, name, tensor)
    elif name.startswith("self_attn.kv_b_proj") and fixture.mla == "split":
        yield from split_kv_b(config, tensor)
    else:
        base, kind = name.rsplit(".", 1)
        if fixture.arch == "llama" and base.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if base.endswith("q_proj") else config.num_key_value_heads
            tensor = permute(tensor, heads)
        yield f"{NAMES[base]}.{kind}", tensor


def permute(weight, heads: int):
    """Rows of each head from half-split rope order (x_i with x_{i+d/2}) to interleaved (x_2i with x_2i+1)."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def expert_tensors(fixture, name: str, tensor):
    """gate_up_proj [experts, 2 ff, hidden] and down_proj [experts, hidden, ff], stacked or one by one."""
    parts = {"down": tensor} if "down" in name else dict(zip(("gate", "up"), tensor.chunk(2, dim=1)))
    for part, stacked in parts.items():
        if fixture.experts == "stacked":
            yield f"ffn_{part}_exps.weight", stacked
        else:
            for expert, matrix in enumerate(stacked):
                yield f"ffn_{part}.{expert}.weight", matrix


def split_kv_b(config, weight):
    """attn_k_b [heads, kv_lora, nope] (transposed) and attn_v_b [heads, v, kv_lora] out of kv_b."""
    nope, value = config.qk_nope_head_dim, config.v_head_dim
    heads = weight.view(config.num_attention_heads, nope + value, weight.shape[-1])
    key, val = heads.split([nope, value], dim=1)
    yield "attn_k_b.weight", key.transpose(1, 2)
    yield "attn_v_b.weight", val


def llama3_factors(config):
    """Divisors of the rope frequencies, [head_dim / 2]."""
    rope = config.rope_parameters
    dim = config.head_dim
    wave = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    context = rope["original_max_position_embeddings"]
    smooth = ((context / wave - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def metadata(fixture, config, peer: bool) -> dict:
    """Architecture keys, names after "<arch>."; `peer` adds what llama.cpp needs to load tiny models."""
    keys = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "vocab_size": config.vocab_size,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
    }
    keys |= latent_keys(fixture, config, peer) if fixture.arch == "deepseek2" else head_keys(config)
    return keys | expert_keys(fixture, config) | rope_keys(config.rope_parameters) | fixture.extra


def head_keys(config) -> dict:
    """Head widths of ordinary attention."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {"rope.dimension_count": dim, "attention.key_length": dim, "attention.value_length": dim}


def latent_keys(fixture, config, peer: bool) -> dict:
    """MLA: split files describe the absorbed form (one key-value head), legacy ones the expanded form."""
    key = config.qk_nope_head_dim + config.qk_rope_head_dim
    keys = {"rope.dimension_count": config.qk_rope_head_dim, "attention.kv_lora_rank": config.kv_lora_rank,
            "leading_dense_block_count": config.first_k_dense_replace}
    if config.q_lora_rank is not None or peer:
        keys["attention.q_lora_rank"] = config.q_lora_rank or 0
    if fixture.mla == "legacy":
        return keys | {"attention.key_length": key, "attention.value_length": config.v_head_dim}
    return keys | {
        "attention.head_count_kv": 1, "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank, "attention.key_length_mla": key,
        "attention.value_length_mla": config.v_head_dim,
    }


def expert_keys(fixture, config) -> dict:
    """Router and expert keys; dense models have none."""
    if not getattr(config, "num_experts_per_tok", None):
        return {}
    count = next(n for k in ("n_routed_experts", "num_local_experts", "num_experts") if (n := getattr(config, k, 0)))
    keys = {"expert_count": count, "expert_used_count": config.num_experts_per_tok}
    if fixture.arch != "llama":
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
    if fixture.arch == "deepseek2":
        v3 = fixture.model.__name__ == "DeepseekV3ForCausalLM"
        keys |= {"expert_shared_count": config.n_shared_experts, "expert_weights_scale": config.routed_scaling_factor}
        keys |= {"expert_weights_norm": True} if config.norm_topk_prob else {}
        keys |= {} if fixture.mla == "legacy" and not v3 else {"expert_gating_func": 2 if v3 else 1}
        if config.n_group is not None:
            keys |= {"expert_group_count": config.n_group, "expert_group_used_count": config.topk_group}
    return keys


def rope_keys(rope: dict) -> dict:
    """Rope scaling as the file states it; llama3's lives in a tensor instead."""
    if rope["rope_type"] not in ("linear", "yarn"):
        return {}
    keys = {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        keys |= {f"rope.scaling.yarn_{k}": float(rope[k]) for k in ("beta_fast", "beta_slow") if k in rope}
    if "mscale_all_dim" in rope:
        keys["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
    return keys


def write(fixture, model, path, store: str, peer: bool = False) -> None:
    """Writes the file; `store` is f16 or f32 for matrices."""
    out = gguf.GGUFWriter(path, fixture.arch)
    out.add_name(fixture.name)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if store == "f16" else gguf.LlamaFileType.ALL_F32)
    for key, value in metadata(fixture, model.config, peer).items():
        add = {bool: out.add_bool, int: out.add_uint32, float: out.add_float32, str: out.add_string}[type(value)]
        add(f"{fixture.arch}.{key}", value)
    add_tokenizer(out, fixture, model.config.vocab_size)
    for name, tensor, matrix in tensors(fixture, model):
        kind = np.float16 if matrix and store == "f16" else np.float32
        out.add_tensor(name, tensor.contiguous().numpy().astype(kind))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def add_tokenizer(out, fixture, vocab: int) -> None:
    """A byte-level BPE over 256 bytes and a few merges, or the model "none"."""
    if fixture.pre is None:
        return out.add_tokenizer_model("none")
    merges = ["Ġ t", "h e", "Ġt he", "i n", "a n", "e r", "Ġ a", "r e", "Ġa n", "an d", "in g", "o n", "l l"]
    tokens = list(bytes_to_unicode().values()) + [m.replace(" ", "") for m in merges]
    special = ["<|bos|>", "<|eos|>"]
    pad = [f"[PAD{i}]" for i in range(vocab - len(tokens) - len(special))]
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.UNUSED] * len(pad)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(fixture.pre)
    out.add_token_list(tokens + special + pad)
    out.add_token_types([int(kind) for kind in kinds])
    out.add_token_merges(merges)
    out.add_bos_token_id(len(tokens))
    out.add_eos_token_id(len(tokens) + 1)
    out.add_add_bos_token(False)


def bytes_to_unicode() -> dict:
    """GPT-2's printable stand-in for every byte, in byte order of the printable ones first (OpenAI's encoder.py)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
