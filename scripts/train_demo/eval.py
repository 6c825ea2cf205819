"""Owns the measurements of the demo pair: losses, acceptance, routing, sample texts.

Everything runs in float32 on the held-out split of `prep.py`. Writes `eval.json` and
`eval.md` (the tables of the README).
"""

import argparse
import json
import math
import os

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from model import Draft, DraftConfig, Target, TargetConfig, generate
from prep import SHARES

WINDOW = 512
PROMPT, CONTINUATION = 32, 96
DRAFT_LENGTH = 4
PROMPTS = {
    "stories_tales": ["Once upon a time", "The king said to his daughter"],
    "stories_novels": ["\"My dear Watson,\" said", "It was a dark night, and"],
    "science_books": ["The origin of species", "In the case of animals"],
    "math_gsm8k_train": ["Question: Tom has 5 apples.", "Question: A train"],
    "code_p3_puzzles": ["# Puzzle: find an input that makes sat return True.\n", "def sol("],
    "shell_tldr": ["# git", "# tar\n\n> Archiving"],
    "tech_peps": ["PEP: 8\nTitle:", "Abstract\n========\n\nThis PEP"],
}


@torch.no_grad()
def heldout(target, draft, units, limit):
    """Teacher-forced pass over held-out windows of at most 512 tokens."""
    c = target.c
    layers = c.layers - c.dense_layers
    sums = {"tokens": 0, "loss_target": 0.0, "loss_draft": 0.0, "agree": 0}
    usage = torch.zeros(layers, c.experts, dtype=torch.long)
    repeated = possible = 0
    for unit in units:
        if sums["tokens"] >= limit:
            break
        for at in range(0, len(unit["ids"]), WINDOW):
            ids = torch.tensor([unit["ids"][at : at + WINDOW + 1]])
            if ids.shape[1] < 2:
                continue
            hidden, routing = target(ids[:, :-1])
            log_t = target.logits(hidden)[0].log_softmax(-1)
            log_d = draft.logits(draft(ids[:, :-1])[0])[0].log_softmax(-1)
            wanted = ids[0, 1:]
            sums["tokens"] += len(wanted)
            sums["loss_target"] += F.nll_loss(log_t, wanted, reduction="sum").item()
            sums["loss_draft"] += F.nll_loss(log_d, wanted, reduction="sum").item()
            sums["agree"] += (log_t.argmax(-1) == log_d.argmax(-1)).sum().item()
            for layer, (_, picks) in enumerate(routing):
                usage[layer] += torch.bincount(picks.reshape(-1), minlength=c.experts)
                same = (picks[1:, :, None] == picks[:-1, None, :]).any(-1)
                repeated += same.sum().item()
                possible += same.numel()
    n = sums["tokens"]
    return {
        "tokens": n,
        "loss_target": sums["loss_target"] / n,
        "loss_draft": sums["loss_draft"] / n,
        "accept_teacher_forced": sums["agree"] / n,
        "same_expert_as_previous_token": repeated / possible,
    }, usage


def tokens_per_round(agree):
    """Mean tokens a greedy round yields: the agreeing run, cut at the draft length, + 1.

    Exact for greedy decoding: while proposals are accepted, the draft's context is the
    target's own text, which is the context `agree` was computed in.
    """
    rounds = tokens = 0
    for row in agree.tolist():
        at = 0
        while at < len(row):
            run = 0
            while run < DRAFT_LENGTH and at + run < len(row) and row[at + run]:
                run += 1
            rounds += 1
            tokens += run + 1
            at += run + 1
    return tokens / rounds


@torch.no_grad()
def own_text(target, draft, units, temperature, generator):
    """Draft against target on the target's own continuations of held-out openings."""
    prompts = [u["ids"][:PROMPT] for u in units if len(u["ids"]) >= PROMPT][:12]
    ids = torch.tensor(prompts)
    text = generate(target, ids, CONTINUATION, temperature, generator)
    whole = torch.cat((ids, text), 1)[:, :-1]
    guess = draft.logits(draft(whole)[0][:, PROMPT - 1 :]).argmax(-1)
    # Against the target's argmax, not the sampled token: what the draft can know.
    best = target.logits(target(whole)[0][:, PROMPT - 1 :]).argmax(-1)
    agree = guess == best
    return agree.float().mean().item(), tokens_per_round(agree)


def hottest_quarter(counts):
    """Share of picks that fall on the most used quarter of the experts, per layer."""
    top = counts.sort(-1, descending=True).values[..., : counts.shape[-1] // 4]
    return (top.sum(-1) / counts.sum(-1)).tolist()


def mean(values):
    return sum(values) / len(values)


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--checkpoint", default="/work/tmp/train/run/checkpoint.pt")
    ap.add_argument("--data", default="/work/tmp/train/data")
    ap.add_argument("--out", required=True)
    ap.add_argument("--tokens", type=int, default=16000, help="held-out tokens per domain")
    ap.add_argument("--prompt", action="append", help="also continue this text greedily")
    ap.add_argument("--threads", type=int, default=1, help="one is fastest: the steps are small")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    os.makedirs(args.out, exist_ok=True)
    ck = torch.load(args.checkpoint, map_location="cpu", weights_only=False)
    target = Target(TargetConfig(**ck["target_config"]))
    draft = Draft(DraftConfig(**ck["draft_config"]))
    target.load_state_dict(ck["target"])
    draft.load_state_dict(ck["draft"])
    tok = Tokenizer.from_file(os.path.join(args.data, "tokenizer.json"))
    generator = torch.Generator().manual_seed(1)

    report = {"state": ck["state"], "domains": {}, "samples": []}
    usages = []
    for domain in SHARES:
        with open(os.path.join(args.data, domain + ".heldout.json")) as f:
            units = json.load(f)
        row, usage = heldout(target, draft, units, args.tokens)
        row["accept_own_greedy"], row["tokens_per_round_greedy"] = own_text(
            target, draft, units, 0.0, generator
        )
        row["agree_own_sampled"], _ = own_text(target, draft, units, 0.8, generator)
        chars = sum(len(u["text"].encode()) for u in units)
        row["bits_per_byte_target"] = (
            row["loss_target"] / math.log(2) * sum(len(u["ids"]) for u in units) / chars
        )
        row["hottest_quarter"] = hottest_quarter(usage)
        row["expert_usage"] = usage.tolist()
        report["domains"][domain] = row
        usages.append(usage.float() / usage.sum(-1, keepdim=True))
        print(domain, {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}, flush=True)
    overall = torch.stack(usages).mean(0)
    report["overall"] = {
        "hottest_quarter": hottest_quarter(overall),
        # 1.0 is an even share; 0 would be a dead expert.
        "least_used": (overall.min(-1).values * overall.shape[-1]).tolist(),
        "most_used": (overall.max(-1).values * overall.shape[-1]).tolist(),
    }
    for key in ("loss_target", "loss_draft", "accept_teacher_forced", "accept_own_greedy",
                "agree_own_sampled", "tokens_per_round_greedy", "bits_per_byte_target"):
        report["overall"][key] = mean([r[key] for r in report["domains"].values()])

    def sample(domain, prompt, temperature):
        ids = torch.tensor([tok.encode(prompt).ids])
        text = tok.decode(generate(target, ids, 80, temperature, generator)[0].tolist(),
                          skip_special_tokens=False)
        report["samples"].append(
            {"domain": domain, "prompt": prompt, "temperature": temperature, "text": text}
        )

    for domain, prompts in PROMPTS.items():
        for prompt in prompts:
            sample(domain, prompt, 0.0)
            sample(domain, prompt, 0.8)
    for prompt in args.prompt or []:
        sample("extra", prompt, 0.0)

    with open(os.path.join(args.out, "eval.json"), "w") as f:
        json.dump(report, f, indent=1)
    with open(os.path.join(args.out, "eval.md"), "w") as f:
        f.write(markdown(report))


def markdown(report):
    lines = [
        "| domain | target loss | bits/byte | draft loss | accepted, own greedy text "
        f"| tokens per round (draft {DRAFT_LENGTH}) | agree, own text at 0.8 | agree, held-out text "
        "| picks on hottest 25 % | same expert as previous token |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in report["domains"].items():
        lines.append(
            f"| {name} | {r['loss_target']:.3f} | {r['bits_per_byte_target']:.3f} "
            f"| {r['loss_draft']:.3f} | {r['accept_own_greedy']:.3f} "
            f"| {r['tokens_per_round_greedy']:.2f} | {r['agree_own_sampled']:.3f} "
            f"| {r['accept_teacher_forced']:.3f} | {mean(r['hottest_quarter']):.3f} "
            f"| {r['same_expert_as_previous_token']:.3f} |"
        )
    o = report["overall"]
    lines.append(
        f"| **mean** | {o['loss_target']:.3f} | {o['bits_per_byte_target']:.3f} "
        f"| {o['loss_draft']:.3f} | {o['accept_own_greedy']:.3f} "
        f"| {o['tokens_per_round_greedy']:.2f} | {o['agree_own_sampled']:.3f} "
        f"| {o['accept_teacher_forced']:.3f} | | |"
    )
    lines += ["", "Picks on the hottest 25 % of experts (an even router gives 0.25), by MoE layer:", ""]
    layers = range(1, len(o["hottest_quarter"]) + 1)
    lines.append("| domain | " + " | ".join(f"layer {i}" for i in layers) + " |")
    lines.append("|---" * (len(layers) + 1) + "|")
    for name, r in report["domains"].items():
        lines.append(f"| {name} | " + " | ".join(f"{v:.3f}" for v in r["hottest_quarter"]) + " |")
    lines.append("| all, mixed evenly | " + " | ".join(f"{v:.3f}" for v in o["hottest_quarter"]) + " |")
    for label, key in (("least used expert (1 = even share)", "least_used"),
                       ("most used expert", "most_used")):
        lines.append(f"| {label} | " + " | ".join(f"{v:.2f}" for v in o[key]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
