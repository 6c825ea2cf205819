"""Owns the export: checkpoint -> tensors under GGUF names + GGUF metadata as JSON.

Per network it writes `<name>.safetensors` (float32, GGUF names and layout) and
`<name>.json`, from which `drafthorse-eval gguf` makes a GGUF without knowing the
architecture:

    {"metadata": [{"key": K, "type": T, "value": V} or
                  {"key": K, "type": "array", "of": T, "value": [...]}],
     "keep_f32": [names of tensors that no quantisation may touch]}

T is a GGUF type name: uint32, float32, bool, string, int32. Shapes are numpy's, row
major; GGUF lists the same dimensions reversed. With --reference it also writes
`ref_<name>.gguf` through the `gguf` package, as an independent yardstick.
"""

import argparse
import json
import os

import gguf
import numpy as np
import torch
from safetensors.numpy import save_file

from model import DraftConfig, MoE, TargetConfig, Draft, Target

# The networks saw 512 tokens; RoPE carries a little further, not to this length
# with full quality. The value is the room the runtime may reserve.
CONTEXT_LENGTH = 2048


def numpy(t):
    return np.ascontiguousarray(t.detach().float().numpy())


def target_tensors(model):
    c = model.c
    out = {
        "token_embd.weight": numpy(model.embed),
        "output_norm.weight": numpy(model.norm),
        "output.weight": numpy(model.head),
    }
    for i, b in enumerate(model.blocks):
        p = f"blk.{i}."
        # kv_b holds, per head, the nope rows of K and then the rows of V. llama.cpp
        # stores them apart: K transposed (it is absorbed into the query), V as it is.
        kv = b.attn.kv_b.view(c.heads, c.nope + c.v_head, c.kv_lora)
        out |= {
            p + "attn_norm.weight": numpy(b.attn_norm),
            p + "attn_q_a.weight": numpy(b.attn.q_a),
            p + "attn_q_a_norm.weight": numpy(b.attn.q_a_norm),
            p + "attn_q_b.weight": numpy(b.attn.q_b),
            p + "attn_kv_a_mqa.weight": numpy(b.attn.kv_a),
            p + "attn_kv_a_norm.weight": numpy(b.attn.kv_a_norm),
            p + "attn_k_b.weight": numpy(kv[:, : c.nope].transpose(1, 2)),
            p + "attn_v_b.weight": numpy(kv[:, c.nope :]),
            p + "attn_output.weight": numpy(b.attn.out),
            p + "ffn_norm.weight": numpy(b.ffn_norm),
        }
        if isinstance(b.ffn, MoE):
            gate, up = b.ffn.gate_up.chunk(2, 1)
            shared = b.ffn.shared
            out |= {
                p + "ffn_gate_inp.weight": numpy(b.ffn.router),
                p + "ffn_gate_exps.weight": numpy(gate),
                p + "ffn_up_exps.weight": numpy(up),
                p + "ffn_down_exps.weight": numpy(b.ffn.down),
                p + "ffn_gate_shexp.weight": numpy(shared.gate),
                p + "ffn_up_shexp.weight": numpy(shared.up),
                p + "ffn_down_shexp.weight": numpy(shared.down),
            }
        else:
            out |= {
                p + "ffn_gate.weight": numpy(b.ffn.gate),
                p + "ffn_up.weight": numpy(b.ffn.up),
                p + "ffn_down.weight": numpy(b.ffn.down),
            }
    return out


def permute_heads(weight, heads):
    """Rows of q and k from RoPE on halves (transformers) to interleaved pairs (ggml)."""
    w = numpy(weight)
    return np.ascontiguousarray(
        w.reshape(heads, 2, w.shape[0] // heads // 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
    )


def draft_tensors(model):
    c = model.c
    # Tied: no output.weight, the loader reads token_embd.weight twice.
    out = {
        "token_embd.weight": numpy(model.embed),
        "output_norm.weight": numpy(model.norm),
    }
    for i, b in enumerate(model.blocks):
        p = f"blk.{i}."
        out |= {
            p + "attn_norm.weight": numpy(b.attn_norm),
            p + "attn_q.weight": permute_heads(b.q, c.heads),
            p + "attn_k.weight": permute_heads(b.k, c.heads),
            p + "attn_v.weight": numpy(b.v),
            p + "attn_output.weight": numpy(b.out),
            p + "ffn_norm.weight": numpy(b.ffn_norm),
            p + "ffn_gate.weight": numpy(b.ffn.gate),
            p + "ffn_up.weight": numpy(b.ffn.up),
            p + "ffn_down.weight": numpy(b.ffn.down),
        }
    return out


def entry(key, kind, value):
    if kind.endswith("[]"):
        return {"key": key, "type": "array", "of": kind[:-2], "value": value}
    return {"key": key, "type": kind, "value": value}


def general(arch, name, size):
    return [
        entry("general.architecture", "string", arch),
        entry("general.type", "string", "model"),
        entry("general.name", "string", name),
        entry("general.size_label", "string", size),
        entry("general.license", "string", "mit OR apache-2.0"),
        entry(
            "general.description",
            "string",
            "Demonstration model of Drafthorse, trained from scratch on public-domain books, "
            "GSM8K and P3 (MIT), tldr-pages (CC BY 4.0) and Python PEPs (public domain).",
        ),
        entry("general.languages", "string[]", ["en"]),
    ]


def target_metadata(c):
    a = "deepseek2."
    return general("deepseek2", "drafthorse-demo-target", "17M") + [
        entry(a + "block_count", "uint32", c.layers),
        entry(a + "context_length", "uint32", CONTEXT_LENGTH),
        entry(a + "embedding_length", "uint32", c.hidden),
        entry(a + "feed_forward_length", "uint32", c.dense_ff),
        entry(a + "expert_feed_forward_length", "uint32", c.expert_ff),
        entry(a + "attention.head_count", "uint32", c.heads),
        # MLA is stored as one latent key/value head.
        entry(a + "attention.head_count_kv", "uint32", 1),
        entry(a + "attention.layer_norm_rms_epsilon", "float32", c.eps),
        entry(a + "attention.q_lora_rank", "uint32", c.q_lora),
        entry(a + "attention.kv_lora_rank", "uint32", c.kv_lora),
        entry(a + "attention.key_length", "uint32", c.kv_lora + c.rope),
        entry(a + "attention.value_length", "uint32", c.kv_lora),
        entry(a + "attention.key_length_mla", "uint32", c.nope + c.rope),
        entry(a + "attention.value_length_mla", "uint32", c.v_head),
        entry(a + "rope.dimension_count", "uint32", c.rope),
        entry(a + "rope.freq_base", "float32", c.rope_theta),
        entry(a + "expert_count", "uint32", c.experts),
        entry(a + "expert_used_count", "uint32", c.experts_used),
        entry(a + "expert_shared_count", "uint32", 1),
        entry(a + "expert_weights_scale", "float32", 1.0),
        # transformers never normalises for V2, whatever norm_topk_prob says.
        entry(a + "expert_weights_norm", "bool", False),
        entry(a + "expert_gating_func", "uint32", 1),
        entry(a + "leading_dense_block_count", "uint32", c.dense_layers),
        entry(a + "vocab_size", "uint32", c.vocab),
    ]


def draft_metadata(c):
    a = "llama."
    return general("llama", "drafthorse-demo-draft", "1M") + [
        entry(a + "block_count", "uint32", c.layers),
        entry(a + "context_length", "uint32", CONTEXT_LENGTH),
        entry(a + "embedding_length", "uint32", c.hidden),
        entry(a + "feed_forward_length", "uint32", c.ff),
        entry(a + "attention.head_count", "uint32", c.heads),
        entry(a + "attention.head_count_kv", "uint32", c.heads),
        entry(a + "attention.layer_norm_rms_epsilon", "float32", c.eps),
        entry(a + "rope.dimension_count", "uint32", c.hidden // c.heads),
        entry(a + "rope.freq_base", "float32", c.rope_theta),
        entry(a + "vocab_size", "uint32", c.vocab),
    ]


def tokenizer_metadata(path):
    with open(path, encoding="utf-8") as f:
        tok = json.load(f)
    vocab = sorted(tok["model"]["vocab"].items(), key=lambda kv: kv[1])
    assert [i for _, i in vocab] == list(range(len(vocab)))
    special = {t["id"] for t in tok["added_tokens"]}
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    merges = [m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]]
    t = "tokenizer.ggml."
    return [
        entry(t + "model", "string", "gpt2"),
        entry(t + "pre", "string", "qwen2"),
        entry(t + "tokens", "string[]", [s for s, _ in vocab]),
        entry(t + "token_type", "int32[]", [int(control if i in special else normal) for _, i in vocab]),
        entry(t + "merges", "string[]", merges),
        entry(t + "eos_token_id", "uint32", 0),
        entry(t + "bos_token_id", "uint32", 0),
        entry(t + "padding_token_id", "uint32", 0),
        entry(t + "add_bos_token", "bool", False),
        entry(t + "add_eos_token", "bool", False),
    ]


def keep_f32(tensors):
    """Norms and routers, as llama.cpp's own quantisation keeps them."""
    return [n for n, t in tensors.items() if t.ndim == 1 or "ffn_gate_inp" in n]


def check_names(arch, layers, tensors):
    """Every name must be one that llama.cpp lists for the architecture."""
    known = set()
    for kind in gguf.MODEL_TENSORS[arch]:
        for i in range(layers):
            known.add(gguf.TENSOR_NAMES[kind].format(bid=i) + ".weight")
    unknown = set(tensors) - known
    assert not unknown, f"not GGUF names: {sorted(unknown)}"


def write_reference(path, tensors, metadata, keep):
    arch = metadata[0]["value"]
    w = gguf.GGUFWriter(path, arch)
    scalar = {
        "string": w.add_string, "uint32": w.add_uint32,
        "float32": w.add_float32, "bool": w.add_bool,
    }
    for m in metadata[1:]:
        (w.add_array if m["type"] == "array" else scalar[m["type"]])(m["key"], m["value"])
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, t in tensors.items():
        if name in keep:
            w.add_tensor(name, t)
        else:
            w.add_tensor(name, gguf.quantize(t, q8), raw_dtype=q8)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--checkpoint", default="/work/tmp/train/run/checkpoint.pt")
    ap.add_argument("--tokenizer", default="/work/tmp/train/data/tokenizer.json")
    ap.add_argument("--out", required=True)
    ap.add_argument("--reference", help="folder for reference GGUFs (Q8_0)")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    ck = torch.load(args.checkpoint, map_location="cpu", weights_only=False)
    target = Target(TargetConfig(**ck["target_config"]))
    draft = Draft(DraftConfig(**ck["draft_config"]))
    target.load_state_dict(ck["target"])
    draft.load_state_dict(ck["draft"])
    tokenizer = tokenizer_metadata(args.tokenizer)
    for name, arch, tensors, metadata, layers in (
        ("target", gguf.MODEL_ARCH.DEEPSEEK2, target_tensors(target),
         target_metadata(target.c), target.c.layers),
        ("draft", gguf.MODEL_ARCH.LLAMA, draft_tensors(draft),
         draft_metadata(draft.c), draft.c.layers),
    ):
        check_names(arch, layers, tensors)
        metadata = metadata + tokenizer
        keep = keep_f32(tensors)
        base = os.path.join(args.out, name)
        # New files take the place of old ones in one step: others poll this folder.
        save_file(tensors, base + ".safetensors.new")
        with open(base + ".json.new", "w", encoding="utf-8") as f:
            json.dump({"metadata": metadata, "keep_f32": keep}, f, ensure_ascii=False)
        os.replace(base + ".safetensors.new", base + ".safetensors")
        os.replace(base + ".json.new", base + ".json")
        if args.reference:
            path = os.path.join(args.reference, f"ref_{name}.gguf")
            write_reference(path + ".new", tensors, metadata, keep)
            os.replace(path + ".new", path)
        print(name, len(tensors), "tensors,", sum(t.size for t in tensors.values()), "values")


if __name__ == "__main__":
    main()
