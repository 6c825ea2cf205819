#!/usr/bin/env python3
"""Greedy text of a GGUF in Drafthorse and in llama.cpp: 10 prompts, 64 tokens each.

usage: compare_greedy.py DRAFTHORSE PEER_GREEDY MODEL.gguf [EXTRA DRAFTHORSE ARGS...]

Owns the prompts and the comparison. PEER_GREEDY is greedy.cpp of this folder, built against libllama
(README.md). Where the ids part, the peer's logits at that position are shown: a near-tie is a gap
that is small against their spread.
"""
import json
import statistics
import subprocess
import sys

PROMPTS = [
    "Once upon a time",
    "The old king looked at his daughter and said",
    "In the middle of the night the",
    "Abstract\n========\n\nThis PEP proposes",
    "def sat(x: int):",
    "# tar\n\n> Archiving utility.",
    "Natalia has 12 apples and gives 5 of them to",
    "The theory of light",
    "It was a bright morning in",
    "If a train travels 60 miles in 2 hours,",
]
TOKENS = 64


def run(*command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command)}: exit {result.returncode}: {result.stderr.strip()}")
    return json.loads(result.stdout)


def main():
    ours, peer, model, *extra = sys.argv[1:]
    differing = 0
    for prompt in PROMPTS:
        theirs = run(peer, "-m", model, "-p", prompt, "-n", str(TOKENS))
        report = run(ours, "run", model, "-p", prompt, "-n", str(TOKENS), "--temp", "0", "--ignore-eos",
                     "--json", *extra)
        a, b = report["tokens"], theirs["generated"]
        if a == b:
            print(f"same    {len(a)} tokens  {prompt!r}")
            continue
        differing += 1
        at = next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)
        ids = theirs["tokens"] + b[:at]
        full = run(peer, "-m", model, "--tokens", ",".join(map(str, ids)), "-n", "1", "--logits")
        row = full["logits"][-1]
        gap = abs(row[a[at]] - row[b[at]]) / statistics.pstdev(row)
        print(f"differs at {at} ({a[at]} for {b[at]}, peer's logits {gap:.4f} std apart)  {prompt!r}")
    print(f"{len(PROMPTS) - differing} of {len(PROMPTS)} prompts equal over {TOKENS} tokens")


main()
