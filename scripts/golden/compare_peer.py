"""Runs the fixtures through llama.cpp and reports how far its logits are from the reference.

    python compare_peer.py GREEDY DIR      # GREEDY: a program as described in README.md, DIR: files of capture.py --peer

Owns: the comparison only. Exits 1 when a fixture that should agree does not.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np

SHARE_MAX = 1e-3  # of the logits' standard deviation


def peer(program: str, model: pathlib.Path, tokens: list[int], *flags: str) -> dict:
    """One run of the peer; empty when it refuses the file."""
    ids = ",".join(map(str, tokens))
    run = subprocess.run([program, "-m", model, "--tokens", ids, *flags], capture_output=True, text=True, check=False)
    return json.loads(run.stdout) if run.returncode == 0 else {}


def compare(program: str, model: pathlib.Path, expected: dict) -> str:
    """One report line: largest difference in stds, agreement of the argmax, greedy continuation."""
    worst, agree, rows = 0.0, 0, 0
    for run in expected["sequences"]:
        got = peer(program, model, run["tokens"], "--logits")
        if not got:
            return "refused"
        ours, theirs = np.array(run["logits"]), np.array(got["logits"])
        worst = max(worst, float(np.abs(ours - theirs).max()) / expected["logits_std"])
        agree += int((ours.argmax(1) == theirs.argmax(1)).sum())
        rows += len(ours)
    greedy = expected["greedy"]
    same = peer(program, model, greedy["prompt"], "-n", str(len(greedy["ids"])))["generated"] == greedy["ids"]
    verdict = "ok" if worst < SHARE_MAX and same else "DIFFERS"
    return f"{verdict} max {worst:.2e} std, argmax {agree}/{rows}, greedy {'same' if same else 'differs'}"


def main() -> None:
    """Command line."""
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    failed = False
    for path in sorted(folder.glob("*.json")):
        expected = json.loads(path.read_text(encoding="utf-8"))
        line = compare(program, path.with_suffix(".gguf"), expected)
        failed |= not line.startswith("ok") and expected["peer"] == "agrees"
        print(f"{expected['name']:24} {line}   [{expected['peer']}]", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
