"""Random models whose every part matters, and their float32 logits by `transformers`.

Owns: weights, the forward pass, routing as observed and as recomputed by `select`, sensitivity numbers.
Must not know: GGUF.
"""

import zlib

import torch

DOWN_GAIN = 2.0
LOGITS_STD = 2.0


def build(fixture):
    """A transformers model of the fixture with seeded weights, in float32 and evaluation mode."""
    model = fixture.model(fixture.build_config()).eval().float()
    for name, tensor in model.state_dict(keep_vars=True).items():
        generator = torch.Generator().manual_seed(fixture.seed * 1_000_003 + zlib.crc32(name.encode()))
        tensor.data.copy_(draw(name, tensor, generator, model.config))
        if fixture.store == "f16" and stored_as_matrix(name, tensor):
            tensor.data.copy_(tensor.data.half().float())
    return model


def stored_as_matrix(name: str, tensor) -> bool:
    """Whether the tensor takes the fixture's block type; routers and vectors stay float32, as in llama.cpp."""
    return tensor.dim() >= 2 and not name.endswith("mlp.gate.weight")


def draw(name: str, tensor, generator, config):
    """Random values at a scale where the tensor moves the logits; std in units of 1/sqrt(fan-in) for matrices."""
    noise = torch.randn(tensor.shape, generator=generator)
    if name.endswith("e_score_correction_bias"):
        return 0.25 * noise - 0.5  # mostly negative: masking with 0 instead of -inf would show
    if name.endswith("bias"):
        return 0.5 * noise
    if "norm" in name:
        return 1.0 + 0.3 * noise.clamp(-2, 2)
    if name.endswith("embed_tokens.weight"):
        return (LOGITS_STD / config.hidden_size**0.5 if config.tie_word_embeddings else 1.0) * noise
    return gain(name) * noise / tensor.shape[-1] ** 0.5


def gain(name: str) -> float:
    """How much louder than unit variance a matrix is, so that softmaxes are peaked and branches audible."""
    if name.endswith("lm_head.weight"):
        return LOGITS_STD
    if "down_proj" in name:
        return DOWN_GAIN
    if name.endswith(("q_proj.weight", "k_proj.weight", "q_b_proj.weight", "mlp.gate.weight")):
        return 1.5
    return 1.0


@torch.no_grad()
def logits(model, tokens: list[int]):
    """Logits of every position, [tokens, vocab], float32."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float()


@torch.no_grad()
def routed(model, tokens: list[int]):
    """(logits, routing): per expert layer the gate's own (router_logits, weights, indices)."""
    seen, hooks = {}, []
    for index, layer in enumerate(model.model.layers):
        gate = getattr(layer.mlp, "gate", None)
        if gate is not None:
            hooks.append(gate.register_forward_hook(lambda _m, _i, out, index=index: seen.__setitem__(index, out)))
    out = logits(model, tokens)
    for hook in hooks:
        hook.remove()
    return out, seen


def greedy(model, prompt: list[int], count: int) -> dict:
    """`count` tokens after the prompt, with the smallest lead of a winner over its runner-up."""
    tokens, lead = list(prompt), float("inf")
    for _ in range(count):
        best = logits(model, tokens)[-1].topk(2)
        lead = min(lead, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
    return {"prompt": prompt, "ids": tokens[len(prompt):], "lead_min": round(lead, 5)}


def rules(fixture) -> dict:
    """The routing rule of the fixture in this project's words."""
    config = fixture.build_config()
    v3 = fixture.model.__name__ == "DeepseekV3ForCausalLM"
    grouped = v3 or getattr(config, "topk_method", "") == "group_limited_greedy"
    norm = getattr(config, "norm_topk_prob", True) and fixture.model.__name__ != "DeepseekV2ForCausalLM"
    return {
        "score": "sigmoid" if v3 else "softmax",
        "groups": config.n_group if grouped else 1,
        "groups_used": config.topk_group if grouped else 1,
        "group_score": "best_two" if v3 else "best",
        "k": getattr(config, "num_experts_per_tok", 0),
        "normalise": bool(norm),
        "scale": getattr(config, "routed_scaling_factor", 1.0),
    }


def select(router_logits, rule: dict, bias=None):
    """Independent router: (indices [n, k] in falling order of choice, weights [n, k], margin of the choice)."""
    scores = router_logits.sigmoid() if rule["score"] == "sigmoid" else router_logits.softmax(-1)
    choice = scores if bias is None else scores + bias
    margin = float("inf")
    if rule["groups"] > 1:
        groups = choice.view(len(choice), rule["groups"], -1)
        best = groups.topk(2 if rule["group_score"] == "best_two" else 1).values.sum(-1)
        order = best.sort(descending=True)
        margin = lead(order.values, rule["groups_used"])
        keep = torch.zeros_like(best).scatter_(1, order.indices[:, : rule["groups_used"]], 1.0)
        choice = groups.masked_fill(keep.unsqueeze(-1) == 0, rule.get("mask", float("-inf"))).view_as(choice)
    order = choice.sort(descending=True)
    indices = order.indices[:, : rule["k"]]
    weights = scores.gather(1, indices)
    if rule["normalise"]:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return indices, weights * rule["scale"], min(margin, lead(order.values, rule["k"]))


def lead(ordered, count: int) -> float:
    """Smallest distance between the last chosen and the first refused score, over all rows."""
    return float((ordered[:, count - 1] - ordered[:, count]).min())


def sensitivity(model, tokens: list[int]) -> dict:
    """Per kind of tensor: largest change of a logit, in logit stds, when it is silenced (norms set to one)."""
    base = logits(model, tokens)
    state = model.state_dict(keep_vars=True)
    kinds = {}
    for name in state:
        kinds.setdefault(".".join(p for p in name.split(".") if not p.isdigit()), []).append(name)
    changes = {}
    for kind, names in kinds.items():
        saved = {name: state[name].data.clone() for name in names}
        for name in names:
            state[name].data.fill_(1.0 if "norm" in name and not name.endswith("bias") else 0.0)
        changes[kind] = round(float((logits(model, tokens) - base).abs().max() / base.std()), 3)
        for name in names:
            state[name].data.copy_(saved[name])
    return changes
