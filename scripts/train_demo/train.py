"""Owns the training run: sampling, losses, optimiser, schedule, checkpoints, log.

Two phases on one clock. Until --target-end both networks train on the same batches,
the target on the corpus, the draft on the corpus and on the target's own softmax
(which costs it no extra target pass). After it the target is frozen and the draft
alone is distilled, partly on text the target itself wrote, until --draft-end.

The schedule follows wall-clock time, not steps: the machine is shared, and a starved
or resumed run still ends annealed at the times it was given.
"""

import argparse
import json
import math
import os
import signal
import time
from datetime import datetime, timezone

import numpy as np
import torch
import torch.nn.functional as F

from model import Draft, DraftConfig, Target, TargetConfig, config_dict, generate
from prep import SHARES

CONTEXT = 512
# Domains of short documents: half of their sequences start at a document's start,
# so that a bare prompt at position 0 is nothing new to the networks.
ALIGNED = ("math_gsm8k_train", "code_p3_puzzles", "shell_tldr", "tech_peps")
# The first part of the joint phase runs on sequences of half the length (and twice as
# many of them): cheaper attention and more varied batches while the basics are learnt.
SHORT_UNTIL = 0.6
# Weak on purpose: it is computed over a running mean of whole batches, so no expert
# dies, but every domain is free to keep its own favourites.
BALANCE = 0.01
BALANCE_MEMORY = 0.8
# The share of the draft's loss that is KL to the target; the rest is the next token.
DISTIL_JOINT, DISTIL_ALONE = 0.7, 0.95
DTYPE = torch.bfloat16


class Sampler:
    def __init__(self, folder, seed):
        self.rng = np.random.default_rng(seed)
        self.names = list(SHARES)
        self.shares = np.array([SHARES[n] for n in self.names])
        self.tokens, self.starts = {}, {}
        for n in self.names:
            t = np.load(os.path.join(folder, n + ".train.npy"))
            self.tokens[n] = t
            starts = np.concatenate(([0], np.flatnonzero(t == 0) + 1))
            self.starts[n] = starts[starts < len(t) - CONTEXT - 1]

    def sequence(self, name, length=CONTEXT + 1):
        t = self.tokens[name]
        if name in ALIGNED and self.rng.random() < 0.5:
            at = self.rng.choice(self.starts[name])
        else:
            at = self.rng.integers(0, len(t) - length)
        return t[at : at + length].astype(np.int64)

    def batch(self, rows, length=CONTEXT + 1):
        # Systematic sampling: every batch holds the domains nearly at their shares,
        # which keeps the gradient and the balance loss steady.
        points = (np.arange(rows) + self.rng.random()) / rows
        picks = np.searchsorted(np.cumsum(self.shares), points).clip(max=len(self.names) - 1)
        return torch.from_numpy(np.stack([self.sequence(self.names[i], length) for i in picks]))


def orthogonalise(x, steps=5):
    """Newton-Schulz iteration of Muon on a batch of matrices."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        a = torch.bmm(x, x.mT)
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.mT if tall else x


class Muon:
    """Muon for the hidden matrices."""

    def __init__(self, matrices, momentum=0.95, decay=0.02, chunk=16):
        self.momentum, self.decay, self.chunk = momentum, decay, chunk
        self.matrices = matrices
        self.buffers = {name: torch.zeros_like(p) for name, p, _ in matrices}

    @torch.no_grad()
    def step(self, lr):
        for name, whole, rows in self.matrices:
            scale = max(1.0, rows / whole.shape[-1]) ** 0.5
            # Experts go through a few at a time, so that all passes over their
            # weights, gradients and momenta stay in cache.
            views = [t.view(-1, rows, whole.shape[-1]).split(self.chunk)
                     for t in (whole, whole.grad, self.buffers[name])]
            for p, grad, buf in zip(*views):
                buf.lerp_(grad, 1 - self.momentum)
                update = grad.lerp(buf, self.momentum)
                update.div_(update.norm(dim=(-2, -1), keepdim=True).add_(1e-7))
                update = orthogonalise(update.to(DTYPE))
                p.mul_(1 - lr * self.decay).add_(update, alpha=-lr * scale)

    def state_dict(self):
        return self.buffers

    def load_state_dict(self, state):
        for name, value in state.items():
            self.buffers[name].copy_(value)


class Optimiser:
    """Muon for hidden matrices, AdamW for embeddings, read-out, router and norms."""

    def __init__(self, model, rates):
        matrices, by_rate = [], {}
        for name, p in model.named_parameters():
            kind = name.split(".")[-1]
            if kind in rates["adam"]:
                by_rate.setdefault(rates["adam"][kind], []).append(p)
            elif p.dim() == 1:
                by_rate.setdefault(rates["adam"]["norm"], []).append(p)
            else:
                # gate_up stacks two matrices per expert; Muon must see each alone.
                rows = p.shape[-2] // 2 if kind == "gate_up" else p.shape[-2]
                matrices.append((name, p, rows))
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            [{"params": ps, "lr": lr, "base": lr} for lr, ps in by_rate.items()],
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        )
        self.rate = rates["muon"]
        self.params = list(model.parameters())

    def step(self, factor, clip=1.0):
        norm = torch.nn.utils.clip_grad_norm_(self.params, clip, foreach=True)
        self.muon.step(self.rate * factor)
        for g in self.adam.param_groups:
            g["lr"] = g["base"] * factor
        self.adam.step()
        for p in self.params:
            p.grad = None
        return float(norm)

    def state_dict(self):
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state):
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


TARGET_RATES = {"muon": 0.02, "adam": {"embed": 6e-3, "head": 3e-3, "router": 2e-3, "norm": 4e-3}}
DRAFT_RATES = {"muon": 0.02, "adam": {"embed": 3e-3, "norm": 4e-3}}


def rate_factor(share, step, warm=60, flat=0.35, floor=0.01):
    """Warm-up by steps, then flat, then linear to `floor` at `share` = 1 of the time."""
    decay = 1.0 if share < flat else max(floor, 1 - (1 - floor) * (share - flat) / (1 - flat))
    return min(1.0, (step + 1) / warm) * decay


@torch.no_grad()
def losses(wanted, logits_t, logits_d, part, distil):
    """Losses and their analytic gradients with respect to both logit blocks.

    Done by hand, sequence by sequence: autograd would keep several float32 copies of
    [tokens, 4096] and walk main memory for each. The draft has only the rows `part`.
    """
    n_t, n_d = wanted.numel(), logits_d.shape[0] * logits_d.shape[1]
    grad_t, grad_d = torch.empty_like(logits_t), torch.empty_like(logits_d)
    draft_rows = {row: i for i, row in enumerate(range(len(wanted))[part])}
    loss_t = loss_d = 0.0
    for row in range(len(wanted)):
        y = wanted[row, :, None]
        p_t = F.log_softmax(logits_t[row].float(), -1)
        loss_t -= p_t.gather(1, y).sum()
        i = draft_rows.get(row)
        if i is not None:
            p_d = F.log_softmax(logits_d[i].float(), -1)
            loss_d -= p_d.gather(1, y).sum()
            if i == 0:  # argmax is slow, and one sequence is enough to watch it
                agree = float((p_t.argmax(-1) == p_d.argmax(-1)).float().mean())
            p_t.exp_()
            p_d.exp_().sub_(p_t, alpha=distil)
            p_d.scatter_add_(1, y, torch.full_like(y, distil - 1, dtype=torch.float32))
            grad_d[i] = p_d.div_(n_d)
        else:
            p_t.exp_()
        p_t.scatter_add_(1, y, torch.full_like(y, -1, dtype=torch.float32))
        grad_t[row] = p_t.div_(n_t)
    return float(loss_t) / n_t, float(loss_d) / n_d, agree, grad_t, grad_d


class OwnText:
    """A rolling pool of sequences the target wrote, for on-policy distillation."""

    def __init__(self, target, sampler, seed):
        self.target, self.sampler = target, sampler
        self.generator = torch.Generator().manual_seed(seed)
        self.pool = torch.empty(0, CONTEXT + 1, dtype=torch.long)

    def refill(self, rows=64, prompt=33):
        with torch.no_grad():
            ids = self.sampler.batch(rows)[:, :prompt]
            # Half greedy (a temperature of nearly zero), half sampled.
            temperature = torch.where(torch.arange(rows) % 2 == 0, 1e-3, 0.8)[:, None]
            text = generate(
                self.target, ids, CONTEXT + 1 - prompt, temperature, self.generator, DTYPE
            )
        self.pool = torch.cat((torch.cat((ids, text), 1), self.pool))[:512]

    def batch(self, rows):
        return self.pool[torch.randperm(len(self.pool), generator=self.generator)[:rows]]


def parse_time(text):
    """'HH:MM' UTC today."""
    h, m = map(int, text.split(":"))
    now = datetime.now(timezone.utc)
    return now.replace(hour=h, minute=m, second=0, microsecond=0).timestamp()


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--data", default="/work/tmp/train/data")
    ap.add_argument("--out", default="/work/tmp/train/run")
    ap.add_argument("--target-end", required=True, help="HH:MM UTC: the target is annealed")
    ap.add_argument("--draft-end", required=True, help="HH:MM UTC: the draft is annealed")
    ap.add_argument("--rows", type=int, default=8, help="sequences of 512 tokens per batch")
    ap.add_argument("--save-every", type=int, default=180, help="seconds")
    ap.add_argument("--max-steps", type=int, default=0, help="stop early (benchmarks)")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--seed", type=int, default=20261121)
    ap.add_argument("--resume", action="store_true")
    args = ap.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    os.makedirs(args.out, exist_ok=True)
    path = os.path.join(args.out, "checkpoint.pt")
    target, draft = Target(TargetConfig()), Draft(DraftConfig())
    opt_t, opt_d = Optimiser(target, TARGET_RATES), Optimiser(draft, DRAFT_RATES)
    moe_layers = target.c.layers - target.c.dense_layers
    load = torch.full((moe_layers, target.c.experts), 1 / target.c.experts)
    state = {"step": 0, "tokens_target": 0, "tokens_draft": 0, "t0": time.time(), "busy": 0.0}
    if args.resume and os.path.exists(path):
        ck = torch.load(path, map_location="cpu", weights_only=False)
        target.load_state_dict(ck["target"])
        draft.load_state_dict(ck["draft"])
        opt_t.load_state_dict(ck["opt_target"])
        opt_d.load_state_dict(ck["opt_draft"])
        load, state = ck["load"], ck["state"]
    # A resumed run draws new batches rather than the ones already seen.
    sampler = Sampler(args.data, (args.seed, state["step"]))
    own = OwnText(target, sampler, args.seed + state["step"])
    target_end, draft_end = parse_time(args.target_end), parse_time(args.draft_end)
    if not args.resume:
        print("parameters: target", sum(p.numel() for p in target.parameters()),
              "draft", sum(p.numel() for p in draft.parameters()), flush=True)

    def save():
        ck = {
            "target": target.state_dict(), "draft": draft.state_dict(),
            "opt_target": opt_t.state_dict(), "opt_draft": opt_d.state_dict(),
            "load": load, "state": state,
            "target_config": config_dict(target.c), "draft_config": config_dict(draft.c),
        }
        torch.save(ck, path + ".new")
        os.replace(path + ".new", path)

    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    log = open(os.path.join(args.out, "log.jsonl"), "a")
    saved = window_start = time.time()
    window_tokens, sums, count = 0, np.zeros(3), 0
    while True:
        now = time.time()
        joint = now < target_end
        if stopped or now >= draft_end or (args.max_steps and state["step"] >= args.max_steps):
            break
        begin = now
        t0 = state["t0"]
        factor_t = rate_factor((now - t0) / (target_end - t0), state["step"])
        factor_d = rate_factor((now - t0) / (draft_end - t0), state["step"], flat=0.6)
        if joint:
            short = (now - t0) / (target_end - t0) < SHORT_UNTIL
            batch = (
                sampler.batch(args.rows * 2, CONTEXT // 2 + 1) if short else sampler.batch(args.rows)
            )
            # The small draft needs fewer tokens than the target: every other row.
            part = slice(None, None, 2)
        else:
            part = slice(None)
            if "frozen" not in state:
                state["frozen"] = True
                save()
            # Three refills up front, then a few more as the phase goes on.
            if len(own.pool) < 192 or state["step"] % 150 == 0:
                own.refill()
            batch = torch.cat((sampler.batch(args.rows - 3), own.batch(3)))
        ids, wanted = batch[:, :-1], batch[:, 1:]

        with torch.set_grad_enabled(joint):
            hidden, routing = target(ids, dtype=DTYPE)
            logits_t = target.logits(hidden, DTYPE)
        hidden_d, _ = draft(ids[part], dtype=DTYPE)
        logits_d = draft.logits(hidden_d, DTYPE)
        loss_t, loss_d, agree, grad_t, grad_d = losses(
            wanted, logits_t.detach(), logits_d.detach(), part,
            DISTIL_JOINT if joint else DISTIL_ALONE,
        )
        if joint:
            balance = 0.0
            for i, (probs, picks) in enumerate(routing):
                share = torch.bincount(picks.reshape(-1), minlength=target.c.experts)
                load[i].lerp_(share / picks.numel(), 1 - BALANCE_MEMORY)
                balance = balance + target.c.experts * (load[i].clone() * probs.mean(0)).sum()
            torch.autograd.backward(
                (logits_t, balance * BALANCE), (grad_t, None)
            )
            norm = opt_t.step(factor_t)
            state["tokens_target"] += wanted.numel()
        torch.autograd.backward(logits_d, grad_d)
        opt_d.step(factor_d)
        state["tokens_draft"] += logits_d.shape[0] * logits_d.shape[1]
        state["step"] += 1
        window_tokens += wanted.numel()
        sums += (loss_t, loss_d, agree)
        count += 1
        now = time.time()
        state["busy"] += now - begin

        if state["step"] % 20 == 0:
            row = {
                "step": state["step"], "elapsed": round(now - state["t0"], 1),
                "phase": "joint" if joint else "distil",
                "loss_target": round(sums[0] / count, 4), "loss_draft": round(sums[1] / count, 4),
                "agree": round(sums[2] / count, 4), "grad_norm": round(norm, 3) if joint else None,
                "lr_factor": round(factor_t if joint else factor_d, 4),
                "least_load": round(float(load.min()) * target.c.experts, 3),
                "most_load": round(float(load.max()) * target.c.experts, 3),
                "tokens_per_s": round(window_tokens / (now - window_start)),
                "tokens_target": state["tokens_target"], "tokens_draft": state["tokens_draft"],
            }
            assert math.isfinite(row["loss_target"]) and math.isfinite(row["loss_draft"])
            log.write(json.dumps(row) + "\n")
            log.flush()
            window_start, window_tokens, sums, count = now, 0, np.zeros(3), 0
        if now - saved > args.save_every:
            save()
            saved = time.time()
    save()
    log.close()


if __name__ == "__main__":
    main()
