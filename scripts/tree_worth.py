#!/usr/bin/env python3
"""What a tree of drafted tokens could bring over a chain, before one is built.

    scripts/tree_worth.py TARGET.gguf DRAFT.gguf [--drafthorse target/release/drafthorse] [--tokens 192]

Continues the built-in prompts greedily (with --tokens 0 it takes the prompts themselves, on which the two agree less) and
asks both models for their logits along the text. A chain of K tokens is
compared with the same chain beside S of the draft's second choices (the likeliest of them, by the draft's own
probabilities): where the chain errs and a second choice stands, the pass commits one token more. That is what a
tree of so few rows comes to; longer side branches need more rows still. For several costs of a row, in plain passes,
it prints the best chain and the best of all shapes, chosen with hindsight, and their tokens a plain pass's time; so
the gain is an upper bound, and never below 0. A draft's own time is left out: second choices come with the first.
"""

import argparse
import heapq
import itertools
import json
import math
import pathlib
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Extra time of a row: a dense model on a GPU, the mixture of eval/LOG.md on an H200, mixtures in memory on two cores.
ROW_COSTS = (0.01, 0.03, 0.106, 0.2, 0.3, 0.45)
CHAIN_MAX, SIDE_MAX = 12, 8


def answer(program, *words):
    return json.loads(subprocess.run([program, *words, "--json"], check=True, capture_output=True, text=True).stdout)


def top_two(row):
    """Ids and probabilities of the two likeliest tokens."""
    first, second = heapq.nlargest(2, range(len(row)), key=row.__getitem__)
    total = sum(math.exp(value - row[first]) for value in row)
    return (first, 1 / total), (second, math.exp(row[second] - row[first]) / total)


def positions(program, target, draft, text, tokens):
    """For every token of a continuation, or of the text itself where none is wanted: whether the draft's first and
    second choice are the target's, and their probabilities."""
    joined = lambda ids: ",".join(map(str, ids))
    logits = lambda model, ids: answer(program, "logits", model, "--tokens", joined(ids), "--all", "--stats-file",
                                       "none")["positions"]
    ids = answer(program, "tokenize", target, "-p", text)["ids"][:256]
    start = 0
    if tokens:
        start = len(ids) - 1
        ids += answer(program, "run", target, "--tokens", joined(ids), "-n", str(tokens), "--temp", "0", "--draft", "none",
                      "--ignore-eos", "--stats-file", "none")["tokens"][:-1]
    for theirs, ours in zip(logits(target, ids)[start:], logits(draft, ids)[start:]):
        choice = max(range(len(theirs)), key=theirs.__getitem__)
        (first, p), (second, q) = top_two(ours)
        yield first == choice, second == choice, p, q


def tokens_a_pass(text, chain, side):
    """Mean of a pass that verifies `chain` tokens and `side` second choices."""
    at = passes = 0
    while at < len(text):
        window = text[at : at + chain]
        # Each second choice by the chance, as the draft sees it, that the pass ends with it.
        reach, chances = 1.0, []
        for place, (_, _, p, q) in enumerate(window):
            chances.append((reach * q, place))
            reach *= p
        chosen = {place for _, place in sorted(chances, reverse=True)[:side]}
        stood = next((i for i, row in enumerate(window) if not row[0]), len(window))
        saved = stood < len(window) and stood in chosen and window[stood][1]
        at += stood + 1 + saved
        passes += 1
    return len(text) / passes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("draft")
    parser.add_argument("--drafthorse", default="target/release/drafthorse")
    parser.add_argument("--tokens", type=int, default=192)
    args = parser.parse_args()
    prompts = tomllib.loads((ROOT / "eval/prompts/builtin.toml").read_text())["prompt"]
    texts = [list(positions(args.drafthorse, args.target, args.draft, it["text"], args.tokens)) for it in prompts]
    rows = [row for text in texts for row in text]
    errs = [row for row in rows if not row[0]]
    first, second = 1 - len(errs) / len(rows), sum(row[1] for row in errs) / max(1, len(errs))
    print(f"{len(rows)} tokens: first choice {first:.3f}, second where the first errs {second:.3f}\n")
    print("| row costs | best chain | tokens a pass's time | best tree | tokens a pass's time | gain |")
    print("|---|---|---|---|---|---|")
    mean = {
        (chain, side): sum(tokens_a_pass(text, chain, side) for text in texts) / len(texts)
        for chain, side in itertools.product(range(CHAIN_MAX + 1), range(SIDE_MAX + 1))
        if side <= chain
    }
    for cost in ROW_COSTS:
        rate = {shape: value / (1 + cost * sum(shape)) for shape, value in mean.items()}
        chain = max((shape for shape in rate if shape[1] == 0), key=rate.get)
        tree = max(rate, key=rate.get)
        print(f"| {cost} | {chain[0]} | {rate[chain]:.3f} | {tree[0]} + {tree[1]} | {rate[tree]:.3f} | "
              f"{100 * (rate[tree] / rate[chain] - 1):.1f} % |")


if __name__ == "__main__":
    main()
