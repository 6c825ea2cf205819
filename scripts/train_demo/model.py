"""Owns the two networks of the demo pair: the MoE target and the dense draft.

The target computes exactly what transformers' `DeepseekV2ForCausalLM` computes and
the draft what `LlamaForCausalLM` computes (`check_transformers.py` proves it), but
with only the parts this pair uses, and with an expert layer that is fast on a CPU.
Weights are float32; matrix products run in `dtype` (bfloat16 in training, which
doubles the speed on AVX512-BF16; float32 in evaluation).
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class TargetConfig:
    vocab: int = 4096
    hidden: int = 256
    layers: int = 5
    dense_layers: int = 1
    dense_ff: int = 768
    experts: int = 32
    experts_used: int = 4
    expert_ff: int = 128
    heads: int = 4
    nope: int = 64
    rope: int = 32
    v_head: int = 64
    q_lora: int = 128
    kv_lora: int = 128
    context: int = 512
    rope_theta: float = 10000.0
    eps: float = 1e-6


@dataclass
class DraftConfig:
    vocab: int = 4096
    hidden: int = 128
    layers: int = 3
    ff: int = 352
    heads: int = 4
    context: int = 512
    rope_theta: float = 10000.0
    eps: float = 1e-6


def config_dict(cfg):
    return asdict(cfg)


def rms_norm(x, weight, eps):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def linear(x, weight, dtype):
    return F.linear(x.to(dtype), weight.to(dtype))


def rope_tables(dim, theta, positions):
    inv = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angle = positions.float()[:, None] * inv[None, :]
    return angle.cos(), angle.sin()


def rotate_pairs(x, cos, sin):
    """RoPE on interleaved pairs (DeepSeek-V2, ggml's NORM layout)."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def rotate_halves(x, cos, sin):
    """RoPE on halves (transformers' Llama)."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def attend(q, k, v, cache, dtype):
    """Causal attention over [batch, heads, tokens, dim]; `cache` (a dict) is extended."""
    if cache is not None:
        if "k" in cache:
            k = torch.cat((cache["k"], k), 2)
            v = torch.cat((cache["v"], v), 2)
        cache["k"], cache["v"] = k, v
    # Plain matrix products: in bfloat16 the fused CPU kernel takes nearly twice as
    # long, forward and backward, at these widths and 512 tokens.
    heads, t = q.shape[:2], q.shape[2]
    q, k, v = (x.to(dtype).flatten(0, 1) for x in (q, k, v))
    assert t == 1 or t == k.shape[1], "a prompt goes in as one block"
    hidden = torch.full((t, t), float("-inf"), dtype=dtype).triu(1) if t > 1 else q.new_zeros(1, 1)
    scores = torch.baddbmm(hidden, q, k.mT, alpha=q.shape[-1] ** -0.5)
    out = torch.bmm(scores.softmax(-1), v).unflatten(0, heads)
    return out.transpose(1, 2).flatten(2)


class GroupedExperts(torch.autograd.Function):
    """All routed experts of one layer over the tokens sorted by expert.

    One matrix product per expert on a slice of the sorted tokens. Against padded
    bmm this wastes nothing on unequal expert loads, which this model has on purpose.
    """

    @staticmethod
    def forward(ctx, x, picks, weights, gate_up, down):
        n, k = picks.shape
        flat = picks.reshape(-1)
        order = torch.argsort(flat, stable=True)
        counts = torch.bincount(flat, minlength=gate_up.shape[0]).tolist()
        token = order // k
        xs = x.index_select(0, token)
        width = down.shape[2]
        gu = x.new_empty(n * k, 2 * width)
        ys = x.new_empty(n * k, x.shape[1])
        start = 0
        for e, c in enumerate(counts):
            if c:
                torch.mm(xs[start : start + c], gate_up[e].t(), out=gu[start : start + c])
            start += c
        h = F.silu(gu[:, :width]) * gu[:, width:]
        start = 0
        for e, c in enumerate(counts):
            if c:
                torch.mm(h[start : start + c], down[e].t(), out=ys[start : start + c])
            start += c
        ws = weights.reshape(-1).index_select(0, order).to(x.dtype)[:, None]
        out = x.new_empty(n * k, x.shape[1])
        out.index_copy_(0, order, ys * ws)
        ctx.save_for_backward(xs, gu, h, ys, ws, order, token, gate_up, down)
        ctx.counts, ctx.k = counts, k
        return out.view(n, k, -1).sum(1)

    @staticmethod
    def backward(ctx, grad):
        xs, gu, h, ys, ws, order, token, gate_up, down = ctx.saved_tensors
        width = down.shape[2]
        gs = grad.to(xs.dtype).index_select(0, token)
        grad_ws = (gs * ys).sum(-1, dtype=torch.float32)
        gs *= ws
        d_down = torch.zeros_like(down)
        d_gate_up = torch.zeros_like(gate_up)
        gh = torch.empty_like(h)
        start = 0
        for e, c in enumerate(ctx.counts):
            if c:
                rows = slice(start, start + c)
                torch.mm(gs[rows], down[e], out=gh[rows])
                torch.mm(gs[rows].t(), h[rows], out=d_down[e])
            start += c
        g, u = gu[:, :width], gu[:, width:]
        sig = torch.sigmoid(g)
        act = g * sig
        ggu = torch.empty_like(gu)
        ggu[:, width:] = gh * act
        ggu[:, :width] = gh * u * (sig + act * (1 - sig))
        gx = torch.empty_like(xs)
        start = 0
        for e, c in enumerate(ctx.counts):
            if c:
                rows = slice(start, start + c)
                torch.mm(ggu[rows], gate_up[e], out=gx[rows])
                torch.mm(ggu[rows].t(), xs[rows], out=d_gate_up[e])
            start += c
        back = torch.empty_like(gx)
        back.index_copy_(0, order, gx)
        grad_w = torch.empty_like(grad_ws)
        grad_w.index_copy_(0, order, grad_ws)
        n = order.numel() // ctx.k
        return back.view(n, ctx.k, -1).sum(1), None, grad_w.view(n, ctx.k), d_gate_up, d_down


def init(shape, std):
    return nn.Parameter(torch.randn(shape) * std)


class Gated(nn.Module):
    """SiLU-gated feed-forward block; also the shared expert."""

    def __init__(self, hidden, ff, out_std):
        super().__init__()
        self.gate = init((ff, hidden), hidden**-0.5)
        self.up = init((ff, hidden), hidden**-0.5)
        self.down = init((hidden, ff), out_std * ff**-0.5)

    def forward(self, x, dtype):
        return linear(
            F.silu(linear(x, self.gate, dtype)) * linear(x, self.up, dtype), self.down, dtype
        )


class LatentAttention(nn.Module):
    def __init__(self, c, out_std):
        super().__init__()
        self.c = c
        self.q_a = init((c.q_lora, c.hidden), c.hidden**-0.5)
        self.q_a_norm = nn.Parameter(torch.ones(c.q_lora))
        self.q_b = init((c.heads * (c.nope + c.rope), c.q_lora), c.q_lora**-0.5)
        self.kv_a = init((c.kv_lora + c.rope, c.hidden), c.hidden**-0.5)
        self.kv_a_norm = nn.Parameter(torch.ones(c.kv_lora))
        self.kv_b = init((c.heads * (c.nope + c.v_head), c.kv_lora), c.kv_lora**-0.5)
        self.out = init((c.hidden, c.heads * c.v_head), out_std * (c.heads * c.v_head) ** -0.5)

    def forward(self, x, cos, sin, cache, dtype):
        c = self.c
        b, t, _ = x.shape
        q = linear(rms_norm(linear(x, self.q_a, dtype), self.q_a_norm, c.eps), self.q_b, dtype)
        q_nope, q_pe = q.view(b, t, c.heads, -1).transpose(1, 2).split((c.nope, c.rope), -1)
        latent, k_pe = linear(x, self.kv_a, dtype).split((c.kv_lora, c.rope), -1)
        kv = linear(rms_norm(latent, self.kv_a_norm, c.eps), self.kv_b, dtype)
        k_nope, v = kv.view(b, t, c.heads, -1).transpose(1, 2).split((c.nope, c.v_head), -1)
        q_pe = rotate_pairs(q_pe, cos, sin).to(dtype)
        k_pe = rotate_pairs(k_pe[:, None], cos, sin).to(dtype).expand(-1, c.heads, -1, -1)
        q = torch.cat((q_nope, q_pe), -1)
        k = torch.cat((k_nope, k_pe), -1)
        return linear(attend(q, k, v, cache, dtype), self.out, dtype)


class MoE(nn.Module):
    def __init__(self, c, out_std):
        super().__init__()
        self.c = c
        self.router = init((c.experts, c.hidden), 0.02)
        self.gate_up = init((c.experts, 2 * c.expert_ff, c.hidden), c.hidden**-0.5)
        # Gate weights are plain softmax values (about 1/32 each at first), so the
        # routed experts start four times larger to be heard beside the shared one.
        self.down = init((c.experts, c.hidden, c.expert_ff), 4 * out_std * c.expert_ff**-0.5)
        self.shared = Gated(c.hidden, c.expert_ff, out_std)

    def forward(self, x, dtype):
        flat = x.reshape(-1, x.shape[-1])
        # The router stays in float32, as in transformers and in our runtime.
        probs = F.linear(flat.float(), self.router).softmax(-1)
        weights, picks = probs.topk(self.c.experts_used, -1)
        flat = flat.to(dtype)
        out = GroupedExperts.apply(
            flat, picks, weights, self.gate_up.to(dtype), self.down.to(dtype)
        )
        out = out + self.shared(flat, dtype)
        return out.view_as(x), probs, picks


class TargetLayer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        out_std = (2 * c.layers) ** -0.5
        self.attn_norm = nn.Parameter(torch.ones(c.hidden))
        self.attn = LatentAttention(c, out_std)
        self.ffn_norm = nn.Parameter(torch.ones(c.hidden))
        self.ffn = (
            Gated(c.hidden, c.dense_ff, out_std) if index < c.dense_layers else MoE(c, out_std)
        )


class Target(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed = init((c.vocab, c.hidden), 0.3)
        self.blocks = nn.ModuleList(TargetLayer(c, i) for i in range(c.layers))
        self.norm = nn.Parameter(torch.ones(c.hidden))
        self.head = init((c.vocab, c.hidden), 0.5 * c.hidden**-0.5)

    def forward(self, ids, caches=None, start=0, dtype=torch.float32):
        """Returns (final hidden states, [(router probabilities, picks)] per MoE layer)."""
        c = self.c
        pos = torch.arange(start, start + ids.shape[1])
        cos, sin = rope_tables(c.rope, c.rope_theta, pos)
        x = F.embedding(ids, self.embed)
        routing = []
        for i, block in enumerate(self.blocks):
            cache = caches[i] if caches is not None else None
            h = rms_norm(x, block.attn_norm, c.eps)
            x = x + block.attn(h, cos, sin, cache, dtype)
            h = rms_norm(x, block.ffn_norm, c.eps)
            if isinstance(block.ffn, MoE):
                y, probs, picks = block.ffn(h, dtype)
                routing.append((probs, picks))
            else:
                y = block.ffn(h, dtype)
            x = x + y
        return rms_norm(x, self.norm, c.eps), routing

    def logits(self, hidden, dtype=torch.float32):
        return linear(hidden, self.head, dtype)


class DraftLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        std, out_std = c.hidden**-0.5, (2 * c.layers) ** -0.5
        self.attn_norm = nn.Parameter(torch.ones(c.hidden))
        self.q = init((c.hidden, c.hidden), std)
        self.k = init((c.hidden, c.hidden), std)
        self.v = init((c.hidden, c.hidden), std)
        self.out = init((c.hidden, c.hidden), out_std * std)
        self.ffn_norm = nn.Parameter(torch.ones(c.hidden))
        self.ffn = Gated(c.hidden, c.ff, out_std)


class Draft(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        # Tied: the same matrix embeds and reads out, so it starts at read-out scale.
        self.embed = init((c.vocab, c.hidden), 0.5 * c.hidden**-0.5)
        self.blocks = nn.ModuleList(DraftLayer(c) for _ in range(c.layers))
        self.norm = nn.Parameter(torch.ones(c.hidden))

    def forward(self, ids, caches=None, start=0, dtype=torch.float32):
        c = self.c
        pos = torch.arange(start, start + ids.shape[1])
        cos, sin = rope_tables(c.hidden // c.heads, c.rope_theta, pos)
        x = F.embedding(ids, self.embed)
        for i, block in enumerate(self.blocks):
            cache = caches[i] if caches is not None else None
            h = rms_norm(x, block.attn_norm, c.eps)
            q, k, v = (
                linear(h, w, dtype).unflatten(-1, (c.heads, -1)).transpose(1, 2)
                for w in (block.q, block.k, block.v)
            )
            q = rotate_halves(q, cos, sin).to(dtype)
            k = rotate_halves(k, cos, sin).to(dtype)
            x = x + linear(attend(q, k, v, cache, dtype), block.out, dtype)
            x = x + block.ffn(rms_norm(x, block.ffn_norm, c.eps), dtype)
        return rms_norm(x, self.norm, c.eps), []

    def logits(self, hidden, dtype=torch.float32):
        return linear(hidden, self.embed, dtype)


@torch.no_grad()
def generate(model, ids, count, temperature=0.0, generator=None, dtype=torch.float32):
    """Continues a batch of equally long prompts; returns the new ids [batch, count]."""
    caches = [{} for _ in range(model.c.layers)]
    step, out, start = ids, [], 0
    for _ in range(count):
        hidden, _ = model(step, caches, start, dtype)
        start += step.shape[1]
        logits = model.logits(hidden[:, -1], dtype).float()
        if torch.is_tensor(temperature) or temperature > 0:
            probs = (logits / temperature).softmax(-1)
            step = torch.multinomial(probs, 1, generator=generator)
        else:
            step = logits.argmax(-1, keepdim=True)
        out.append(step)
    return torch.cat(out, 1)
