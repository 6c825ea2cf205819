"""Converts karpathy's stories260K (llama2.c checkpoint + tokenizer) to a llama GGUF and checks its greedy text.

    python stories260k_to_gguf.py SOURCE_DIR OUT.gguf

Owns: the llama2.c file layout (README.md states it in full). The model is never committed; the Rust test
converts it the same way at run time. Source of the layout: llama2.c export.py (version 0) and tokenizer.py.
"""

import json
import pathlib
import struct
import sys

import gguf
import numpy as np

HEADER = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context")
EPS = 1e-5


def read_checkpoint(path: pathlib.Path):
    """(header dict, {gguf tensor name: float32 array}); dims are C order, so [out, in] for matrices."""
    data = path.read_bytes()
    head = dict(zip(HEADER, struct.unpack("<7i", data[:28])))
    tied, head["vocab"] = head["vocab"] > 0, abs(head["vocab"])
    dim, hidden, layers = head["dim"], head["hidden"], head["layers"]
    kv_dim = dim // head["heads"] * head["kv_heads"]
    values, offset, tensors = np.frombuffer(data, "<f4", offset=28), 0, {}

    def take(*shape):
        nonlocal offset
        offset += int(np.prod(shape))
        return values[offset - int(np.prod(shape)) : offset].reshape(shape)

    def per_layer(name: str, *shape):
        tensors.update({f"blk.{i}.{name}.weight": m for i, m in enumerate(take(layers, *shape))})

    tensors["token_embd.weight"] = take(head["vocab"], dim)
    per_layer("attn_norm", dim)
    per_layer("attn_q", dim, dim)
    per_layer("attn_k", kv_dim, dim)
    per_layer("attn_v", kv_dim, dim)
    per_layer("attn_output", dim, dim)
    per_layer("ffn_norm", dim)
    per_layer("ffn_gate", hidden, dim)  # w1
    per_layer("ffn_down", dim, hidden)  # w2
    per_layer("ffn_up", hidden, dim)  # w3
    tensors["output_norm.weight"] = take(dim)
    take(2, head["context"], dim // head["heads"] // 2)  # cos and sin tables, unused
    if not tied:
        tensors["output.weight"] = take(head["vocab"], dim)
    assert offset == len(values), (offset, len(values))
    return head, tensors


def read_tokenizer(path: pathlib.Path, vocab: int):
    """(texts, scores, types) in sentencepiece spelling: spaces as U+2581, <s> and </s> without their newlines."""
    data, offset, texts, scores = path.read_bytes(), 4, [], []
    for _ in range(vocab):
        score, length = struct.unpack_from("<fi", data, offset)
        texts.append(data[offset + 8 : offset + 8 + length].decode("utf-8"))
        scores.append(score)
        offset += 8 + length
    texts = ["<unk>", "<s>", "</s>"] + [text.replace(" ", "\u2581") for text in texts[3:]]
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL] + [kinds.BYTE] * 256 + [kinds.NORMAL] * (vocab - 259)
    return texts, scores, types


def write(head: dict, tensors: dict, tokenizer, path: pathlib.Path) -> None:
    """The GGUF, all float32. llama2.c rotates neighbouring pairs, which is GGUF's llama order: nothing is permuted."""
    out = gguf.GGUFWriter(path, "llama")
    out.add_name("stories260K")
    out.add_vocab_size(head["vocab"])
    out.add_context_length(head["context"])
    out.add_embedding_length(head["dim"])
    out.add_block_count(head["layers"])
    out.add_feed_forward_length(head["hidden"])
    out.add_head_count(head["heads"])
    out.add_head_count_kv(head["kv_heads"])
    out.add_layer_norm_rms_eps(EPS)
    out.add_rope_dimension_count(head["dim"] // head["heads"])
    out.add_rope_freq_base(10000.0)
    texts, scores, types = tokenizer
    out.add_tokenizer_model("llama")
    out.add_token_list(texts)
    out.add_token_scores(scores)
    out.add_token_types([int(kind) for kind in types])
    out.add_unk_token_id(0)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_add_bos_token(True)
    for name, value in tensors.items():
        out.add_tensor(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def norm(x, weight):
    """RMS norm over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def rotate(x, head_dim: int):
    """Rotary embedding of neighbouring pairs; x is [tokens, heads, head_dim]."""
    angle = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)[:, None]
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def attention(head: dict, layer, x):
    """Causal grouped-query attention of one layer; x is [tokens, dim]."""
    n, dim = x.shape[0], head["dim"] // head["heads"]
    q, k, v = ((x @ layer(f"attn_{p}").T).reshape(n, -1, dim) for p in "qkv")
    repeat = head["heads"] // head["kv_heads"]
    q, k, v = rotate(q, dim), np.repeat(rotate(k, dim), repeat, 1), np.repeat(v, repeat, 1)
    scores = np.einsum("qhd,khd->hqk", q, k) / dim**0.5 + np.triu(np.full((n, n), -np.inf), 1)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    out = np.einsum("hqk,khd->qhd", share / share.sum(-1, keepdims=True), v)
    return out.reshape(n, -1) @ layer("attn_output").T


def logits(head: dict, tensors: dict, tokens: list[int]):
    """Logits of the last position, in float64."""
    x = tensors["token_embd.weight"][tokens].astype(np.float64)
    for i in range(head["layers"]):

        def layer(name: str, i=i):
            return tensors[f"blk.{i}.{name}.weight"]

        x = x + attention(head, layer, norm(x, layer("attn_norm")))
        y = norm(x, layer("ffn_norm"))
        gate = y @ layer("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ layer("ffn_up").T)) @ layer("ffn_down").T
    return norm(x[-1], tensors["output_norm.weight"]) @ tensors["token_embd.weight"].T


def check(path: pathlib.Path, head: dict, expected: dict) -> None:
    """The written file, read back, must continue BOS greedily as expected."""
    read = {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}
    tokens = expected["ids"][:1]
    while len(tokens) < len(expected["ids"]):
        tokens.append(int(logits(head, read, tokens).argmax()))
    first = logits(head, read, [1])
    worst = max(abs(first[i] - value) for i, value in expected["first_step_top8_logits"])
    assert tokens == expected["ids"], "greedy continuation differs"
    print(f"{len(tokens) - 1} greedy tokens equal, first-step logits within {worst:.1e}")


def main() -> None:
    """Command line."""
    source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    head, tensors = read_checkpoint(source / "stories260K.bin")
    write(head, tensors, read_tokenizer(source / "tok512.bin", head["vocab"]), out)
    check(out, head, json.loads((source / "expected_greedy.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
