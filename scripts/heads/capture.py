"""Captures the heads: runtime/tests/heads/NAME.gguf and NAME.json. See README.md.

    python capture.py [-o DIR]
"""

import argparse
import json
import pathlib
import zlib

import gguf
import numpy as np

from heads import Eagle3, Medusa, Mtp, chained
from target import File, Target

TESTS = pathlib.Path(__file__).resolve().parents[2] / "runtime/tests"
TEXT = 10  # tokens of the sequence
DRAFTED = 5
DRAFT_VOCAB = 96
SENSITIVITY_MIN = 0.05  # silencing any tensor of a head moves some logit by this many stds
ANCHOR_MAX = 1e-5  # distance from transformers' logits, in stds


def draw(name, shape):
    """Seeded values at a scale where the tensor matters, as scripts/golden draws them; `[rows, columns]`."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("exp_probs_b.bias"):
        return 0.25 * noise - 0.5
    if name.endswith(".bias"):
        return 0.5 * noise
    if "norm" in name:
        return 1 + 0.3 * noise.clip(-2, 2)
    if "token_embd" in name:
        return noise
    gain = 2.0 if "output.weight" in name and "attn" not in name or "down" in name else 1.5 if "attn_q" in name else 1.0
    return gain * noise / shape[-1] ** 0.5


def stored(name, values):
    """Matrices are F16; vectors and routers F32, as llama.cpp writes them."""
    return values.astype(np.float16 if values.ndim > 1 and "gate_inp" not in name else np.float32)


def write(path, arch, fields, tensors):
    """Writes a GGUF; keys are complete, tensors are numpy arrays."""
    out = gguf.GGUFWriter(path, arch)
    for key, value in fields.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            out.add_array(key, value)
            continue
        add = {bool: out.add_bool, int: out.add_uint32, float: out.add_float32, str: out.add_string}[type(value)]
        add(key, value)
    for name, values in tensors.items():
        out.add_tensor(name, values)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def mtp_file(target, path):
    """The target's file with one more block: all of its last block's shapes, and the head's own."""
    last, index = target.key("block_count") - 1, target.key("block_count")
    width = target.key("embedding_length")
    shapes = {name.replace(f"blk.{last}.", f"blk.{index}."): data.shape for name, data in target.raw.items()
              if name.startswith(f"blk.{last}.")}
    shapes |= {f"blk.{index}.nextn.eh_proj.weight": (width, 2 * width)}
    shapes |= {f"blk.{index}.nextn.{part}.weight": (width,) for part in ("enorm", "hnorm", "shared_head_norm")}
    fields = target.fields | {"general.name": "mtp", "deepseek2.block_count": index + 1,
                              "deepseek2.nextn_predict_layers": 1}
    tensors = target.raw | {name: stored(name, draw(name, shape)) for name, shape in shapes.items()}
    write(path, "deepseek2", fields, tensors)


def eagle3_file(target, path, variant):
    """llama.cpp's names and keys; `variant` has the optional parts the other one lacks."""
    width, vocab, heads, kv_heads, dim, inner = 64, 128, 2, 1, 32, 64
    shapes = {
        "fc.weight": (width, 3 * width), "output_norm.weight": (width,),
        "blk.0.attn_norm.weight": (width,), "blk.0.attn_norm_2.weight": (width,), "blk.0.ffn_norm.weight": (width,),
        "blk.0.attn_q.weight": (heads * dim, 2 * width), "blk.0.attn_k.weight": (kv_heads * dim, 2 * width),
        "blk.0.attn_v.weight": (kv_heads * dim, 2 * width), "blk.0.attn_output.weight": (width, heads * dim),
        "blk.0.ffn_gate.weight": (inner, width), "blk.0.ffn_up.weight": (inner, width),
        "blk.0.ffn_down.weight": (width, inner),
    }
    if variant:
        shapes |= {"enc.output_norm.weight": (3 * width,), "token_embd.weight": (vocab, width)}
    else:
        shapes |= {"output.weight": (DRAFT_VOCAB, width)}
    tensors = {name: stored(name, draw(f"{variant} {name}", shape)) for name, shape in shapes.items()}
    if not variant:
        ids = np.random.default_rng(7).permutation(vocab)[:DRAFT_VOCAB]
        tensors["d2t"] = np.sort(ids).astype(np.int64)
    keys = {
        "block_count": 1, "context_length": 128, "embedding_length": width, "feed_forward_length": inner,
        "vocab_size": vocab, "attention.head_count": heads, "attention.head_count_kv": kv_heads,
        "attention.key_length": dim, "attention.value_length": dim, "rope.dimension_count": dim,
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0,
        "target_layers": [0, 1, 2], "target_hidden_size": target.key("embedding_length"),
        "norm_before_residual": variant, "norm_before_fc": variant,
    }
    write(path, "eagle3", {f"eagle3.{key}": value for key, value in keys.items()}, tensors)


def medusa_file(target, path):
    """Three heads; the last one uses the target's classifier."""
    width, vocab = 64, 128
    shapes = {}
    for head in range(3):
        shapes |= {f"head.{head}.block.0.weight": (width, width), f"head.{head}.block.0.bias": (width,)}
        if head < 2:
            shapes[f"head.{head}.output.weight"] = (vocab, width)
    keys = {"head_count": 3, "block_count": 1, "embedding_length": target.key("embedding_length"),
            "vocab_size": vocab}
    write(path, "medusa", {f"medusa.{key}": value for key, value in keys.items()},
          {name: stored(name, draw(name, shape)) for name, shape in shapes.items()})


def anchored(name):
    """The golden target of that name, once its logits here are those of transformers."""
    file = File(TESTS / f"golden/{name}.gguf")
    golden = json.loads((TESTS / f"golden/{name}.json").read_text())
    for sequence in golden["sequences"]:
        want = np.array(sequence["logits"])
        worst = abs(Target(file, half=False).forward(sequence["tokens"])[1] - want).max() / golden["logits_std"]
        assert worst < ANCHOR_MAX, f"{name}: {worst} std from transformers"
    return file, golden["sequences"][-1]["tokens"][:TEXT]


def finite(rows):
    """7 significant digits; null for a token that the head does not have."""
    return [[float(f"{value:.7g}") if np.isfinite(value) else None for value in row] for row in rows]


def capture_chained(name, target, tokens, taps, make):
    """The JSON of a chained head; `make(target, half)` builds it."""
    model = Target(target, half=True)
    states, _ = model.forward(tokens)
    features = np.concatenate([states[tap] for tap in taps], -1)[:-1]
    head = make(model)
    logits, drafts, draft_logits = chained(head, tokens, features, DRAFTED)
    seen = np.isfinite(logits[0])
    check_sensitivity(name, head.file, lambda: chained(head, tokens, features, 1)[0][:, seen])
    return {"name": name, "tokens": tokens, "taps": taps, "features": finite(features), "logits": finite(logits),
            "drafts": drafts, "draft_logits": finite(draft_logits)}


def capture_medusa(name, target, tokens, make):
    """The JSON of Medusa heads: for every position but the last, the state and all heads' logits."""
    model = Target(target, half=True)
    states, _ = model.forward(tokens)
    heads = make(model)
    rows = lambda: np.array([heads.logits(state).ravel() for state in states[-1][:-1]])
    check_sensitivity(name, heads.file, rows)
    return {"name": name, "tokens": tokens, "taps": [model.blocks], "features": finite(states[-1][:-1]),
            "logits": finite(rows())}


def check_sensitivity(name, file, rows):
    """Every tensor that is the head's own moves its logits."""
    base = rows()
    for tensor in [t for t in file.raw if t.startswith("blk.2.") or file.arch != "deepseek2"]:
        if tensor == "d2t":
            continue
        saved = file.raw[tensor]
        file.raw[tensor] = np.ones_like(saved) if "norm" in tensor else np.zeros_like(saved)
        change = abs(rows() - base).max() / base.std()
        file.raw[tensor] = saved
        assert change > SENSITIVITY_MIN, f"{name}: {tensor} moves logits by {change:.3f} std"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=TESTS / "heads")
    out = parser.parse_args().output
    out.mkdir(parents=True, exist_ok=True)
    results = []

    v3, tokens = anchored("deepseek2_v3")
    mtp_file(v3, out / "mtp.gguf")
    file = File(out / "mtp.gguf")
    results.append(capture_chained("mtp", file, tokens, [2], lambda model: Mtp(model, file, half=True)))

    llama, tokens = anchored("llama_tied")
    for name, variant in (("eagle3", False), ("eagle3_variant", True)):
        eagle3_file(llama, out / f"{name}.gguf", variant)
        eagle = File(out / f"{name}.gguf")
        results.append(capture_chained(name, llama, tokens, [0, 1, 2], lambda model: Eagle3(model, eagle, half=True)))
    medusa_file(llama, out / "medusa.gguf")
    medusa = File(out / "medusa.gguf")
    results.append(capture_medusa("medusa", llama, tokens, lambda model: Medusa(model, medusa)))

    for result in results:
        fields = [f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in result.items()]
        (out / f"{result['name']}.json").write_text("{" + ",\n".join(fields) + "}\n")
        print(result["name"], "logits std", round(float(np.std([v for r in result["logits"] for v in r if v is not None])), 3))


if __name__ == "__main__":
    main()
