"""Targets in numpy: the hidden states and logits of a GGUF, in float64.

Owns: reading weights, attention (grouped-query and latent), feed-forward parts, routing. Written from the
papers and independent of the Rust code; `capture.py` first checks it against transformers' logits.
Must not know: heads.
"""

import gguf
import numpy as np


class File:
    """Tensors by name as float64 matrices `[rows, columns]`, and metadata."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        self.raw = {tensor.name: tensor.data for tensor in reader.tensors}
        self.arch = self.fields["general.architecture"]

    def key(self, name, default=None):
        """`<architecture>.name`."""
        return self.fields.get(f"{self.arch}.{name}", default)

    def __call__(self, name):
        return self.raw[name].astype(np.float64)

    def __contains__(self, name):
        return name in self.raw


def rms(x, weight, eps):
    """RMS norm of the rows."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def silu(x):
    """x * sigmoid(x)."""
    return x / (1 + np.exp(-x))


def rotate(x, base):
    """Rotates neighbouring pairs of `[rows, heads, dim]` by each row's position."""
    rows, _, dim = x.shape
    angle = np.arange(rows)[:, None] * base ** (-np.arange(0, dim, 2) / dim)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    out = np.empty_like(x)
    out[..., 0::2] = x[..., 0::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 0::2] * sin + x[..., 1::2] * cos
    return out


def cached(x, half):
    """What the KV cache returns: rounded to half precision, or not at all."""
    return x.astype(np.float16).astype(np.float64) if half else x


def attend(q, k, v, scale):
    """Causal attention: q `[rows, heads, key]`, k and v `[rows, kv heads, ...]`; `[rows, heads * value]`."""
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    k, v = k.repeat(group, 1), v.repeat(group, 1)
    scores = np.einsum("qhd,khd->hqk", q, k) * scale
    scores = np.where(np.tril(np.ones((rows, rows), bool)), scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(rows, -1)


class Blocks:
    """Blocks of a file with what they share; `half` rounds what the KV cache holds."""

    def __init__(self, file, half):
        self.file, self.half = file, half
        self.eps = file.key("attention.layer_norm_rms_epsilon")
        self.heads = file.key("attention.head_count")
        self.base = file.key("rope.freq_base", 10000.0)

    def part(self, block, name):
        """A tensor of a block."""
        return self.file(f"blk.{block}.{name}")

    def attention(self, block, x):
        """Attention over normed rows."""
        return (self.latent if f"blk.{block}.attn_kv_a_mqa.weight" in self.file else self.grouped)(block, x)

    def grouped(self, block, x):
        """Grouped-query attention."""
        part, rows = lambda name: self.part(block, f"{name}.weight"), len(x)
        kv_heads = self.file.key("attention.head_count_kv")
        q = (x @ part("attn_q").T).reshape(rows, self.heads, -1)
        k = (x @ part("attn_k").T).reshape(rows, kv_heads, -1)
        v = (x @ part("attn_v").T).reshape(rows, kv_heads, -1)
        k, v = cached(rotate(k, self.base), self.half), cached(v, self.half)
        return attend(rotate(q, self.base), k, v, q.shape[-1] ** -0.5) @ part("attn_output").T

    def latent(self, block, x):
        """Multi-head latent attention, not absorbed: keys and values of every head are written out."""
        part, rows = lambda name: self.part(block, f"{name}.weight"), len(x)
        rope, rank = self.file.key("rope.dimension_count"), self.file.key("attention.kv_lora_rank")
        q = rms(x @ part("attn_q_a").T, part("attn_q_a_norm"), self.eps) @ part("attn_q_b").T
        q = q.reshape(rows, self.heads, -1)
        q[..., -rope:] = rotate(q[..., -rope:], self.base)
        low = x @ part("attn_kv_a_mqa").T
        latent = cached(rms(low[:, :rank], part("attn_kv_a_norm"), self.eps), self.half)
        turned = cached(rotate(low[:, None, rank:], self.base), self.half).repeat(self.heads, 1)
        k = np.concatenate([np.einsum("rc,hcn->rhn", latent, part("attn_k_b")), turned], -1)
        v = np.einsum("rc,hvc->rhv", latent, part("attn_v_b"))
        return attend(q, k, v, q.shape[-1] ** -0.5) @ part("attn_output").T

    def feed_forward(self, block, x):
        """Dense, or routed with a shared expert."""
        if f"blk.{block}.ffn_gate_inp.weight" not in self.file:
            return self.expert(block, x, "")
        out = self.expert(block, x, "_shexp")
        gate, up, down = (self.part(block, f"ffn_{name}_exps.weight") for name in ("gate", "up", "down"))
        for row, (chosen, weights) in enumerate(self.route(block, x)):
            for expert, weight in zip(chosen, weights):
                out[row] += weight * ((silu(gate[expert] @ x[row]) * (up[expert] @ x[row])) @ down[expert].T)
        return out

    def expert(self, block, x, suffix):
        """down(silu(gate x) * up x)."""
        gate, up, down = (self.part(block, f"ffn_{name}{suffix}.weight") for name in ("gate", "up", "down"))
        return (silu(x @ gate.T) * (x @ up.T)) @ down.T

    def route(self, block, x):
        """DeepSeek-V3's rule: sigmoid plus bias, best groups by their best two, normalised, scaled."""
        scores = 1 / (1 + np.exp(-(x @ self.part(block, "ffn_gate_inp.weight").T)))
        groups, used = self.file.key("expert_group_count"), self.file.key("expert_group_used_count")
        for row in scores:
            choice = (row + self.part(block, "exp_probs_b.bias")).reshape(groups, -1)
            best = np.argsort(-np.sort(choice)[:, -2:].sum(-1))[:used]
            mask = np.full(groups, -np.inf)
            mask[best] = 0
            order = np.argsort(-(choice + mask[:, None]).ravel())
            chosen = order[: self.file.key("expert_used_count")]
            yield chosen, row[chosen] / row[chosen].sum() * self.file.key("expert_weights_scale")

    def run(self, block, x, attention_input=None):
        """One block over the residual stream `[rows, width]`."""
        entered = rms(x, self.part(block, "attn_norm.weight"), self.eps) if attention_input is None else attention_input
        x = x + self.attention(block, entered)
        return x + self.feed_forward(block, rms(x, self.part(block, "ffn_norm.weight"), self.eps))


class Target(Blocks):
    """A whole model."""

    def __init__(self, file, half):
        super().__init__(file, half)
        self.blocks = file.key("block_count") - file.key("nextn_predict_layers", 0)
        self.output = file("output.weight") if "output.weight" in file else file("token_embd.weight")

    def forward(self, tokens):
        """(inputs of every block and the normed final state, each `[rows, width]`; logits)."""
        states = [self.file("token_embd.weight")[tokens]]
        for block in range(self.blocks):
            states.append(self.run(block, states[-1]))
        states[-1] = rms(states[-1], self.file("output_norm.weight"), self.eps)
        return states, states[-1] @ self.output.T
