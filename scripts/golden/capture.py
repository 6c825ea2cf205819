"""Captures the golden fixtures: runtime/tests/golden/NAME.gguf and NAME.json. See README.md.

    python capture.py                         # all, into the repository
    python capture.py -o DIR --peer           # float32 copies for comparing with llama.cpp
"""

import argparse
import dataclasses
import json
import pathlib
import sys

import torch
import transformers

import gguf_out
import reference
from fixtures import FIXTURES, rope

OUT = pathlib.Path(__file__).resolve().parents[2] / "runtime/tests/golden"
LENGTHS = (1, 7, 24)
GREEDY = 8
MARGIN_MIN = 1e-3  # smallest distance of a routing decision, far above rounding
LEAD_MIN = 0.02  # smallest lead of a greedy choice
SENSITIVITY_MIN = 0.05  # every kind of tensor moves some logit by this many stds


def sequences(fixture, salt: int) -> list[list[int]]:
    """Token sequences of the fixture; `salt` is raised until no decision is a near-tie."""
    generator = torch.Generator().manual_seed(fixture.seed * 7919 + salt)
    vocab = fixture.config["vocab_size"]
    return [torch.randint(0, vocab, (n,), generator=generator).tolist() for n in LENGTHS]


def checked_routing(fixture, model, seen: dict):
    """(JSON routing per expert layer, margin): our `select` must agree with the model's own gate."""
    rule, margin, layers = reference.rules(fixture), float("inf"), {}
    for layer, (router_logits, weights, indices) in seen.items():
        bias = getattr(model.model.layers[layer].mlp.gate, "e_score_correction_bias", None)
        ours, our_weights, lead = reference.select(router_logits, rule, bias)
        margin = min(margin, lead)
        theirs = torch.zeros_like(router_logits).scatter_(1, indices, weights)
        torch.testing.assert_close(torch.zeros_like(router_logits).scatter_(1, ours, our_weights), theirs)
        layers[str(layer)] = {"experts": ours.tolist(), "weights": rounded(our_weights)}
    return layers, margin


def rounded(tensor) -> list:
    """Nested lists with 7 significant digits."""
    if tensor.dim() > 1:
        return [rounded(row) for row in tensor]
    return [float(f"{value:.7g}") for value in tensor.tolist()]


def capture(fixture, model) -> dict:
    """The JSON of one fixture."""
    for salt in range(100):
        runs, margin_min = [], float("inf")
        for tokens in sequences(fixture, salt):
            out, seen = reference.routed(model, tokens)
            routing, margin = checked_routing(fixture, model, seen)
            margin_min = min(margin_min, margin)
            runs.append({"tokens": tokens, "routing": routing, "logits": out})
        greedy = reference.greedy(model, runs[1]["tokens"], GREEDY)
        if margin_min > MARGIN_MIN and greedy["lead_min"] > LEAD_MIN:
            break
    longest = runs[-1]
    result = {
        "name": fixture.name, "architecture": fixture.arch, "exercises": fixture.exercises, "peer": fixture.peer,
        "reference": f"transformers {transformers.__version__} {fixture.model.__name__}, float32",
        "vocab": model.config.vocab_size, "logits_std": round(float(longest["logits"].std()), 4),
        "sensitivity": reference.sensitivity(model, longest["tokens"]) | rope_sensitivity(fixture, longest),
        "greedy": greedy,
    }
    if longest["routing"]:
        result["routing_margin_min"] = float(f"{margin_min:.3g}")
        result["routing_changes"] = other_rules(fixture, model, longest["tokens"])
    for run in runs:
        run["logits"] = rounded(run["logits"])
    return result | {"sequences": runs}


def rope_sensitivity(fixture, run: dict) -> dict:
    """Largest change of a logit, in stds, when the rope scaling is left out; empty where there is none."""
    scaled = fixture.config["rope_parameters"]
    if scaled["rope_type"] == "default":
        return {}
    config = fixture.config | {"rope_parameters": rope(scaled["rope_theta"])}
    plain = reference.logits(reference.build(dataclasses.replace(fixture, config=config)), run["tokens"])
    return {"rope_scaling": round(float((plain - run["logits"]).abs().max() / run["logits"].std()), 3)}


def other_rules(fixture, model, tokens: list[int]) -> dict:
    """How many of the longest sequence's (token, layer) choices another rule would change."""
    rule, counts = reference.rules(fixture), {}
    swapped = "best" if rule["group_score"] == "best_two" else "best_two"
    others = {"no_groups": rule | {"groups": 1}, "other_group_score": rule | {"group_score": swapped},
              "masked_with_zero": rule | {"mask": 0.0}, "no_bias": rule}
    for layer, (router_logits, _, _) in reference.routed(model, tokens)[1].items():
        bias = getattr(model.model.layers[layer].mlp.gate, "e_score_correction_bias", None)
        right = reference.select(router_logits, rule, bias)[0].sort().values
        for name, other in others.items():
            wrong = reference.select(router_logits, other, None if name == "no_bias" else bias)[0].sort().values
            counts[name] = counts.get(name, 0) + int((wrong != right).any(1).sum())
    return counts


def dump(result: dict) -> str:
    """JSON with one line per field and per logits row, so that diffs and files stay small."""
    fields = [f"{json.dumps(k)}:{json.dumps(v)}" for k, v in result.items() if k != "sequences"]
    runs = []
    for run in result["sequences"]:
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in run["logits"])
        head = json.dumps({k: v for k, v in run.items() if k != "logits"}, separators=(",", ":"))
        runs.append(f'{head[:-1]},"logits":[\n{rows}]}}')
    return "{" + ",\n".join(fields) + ',\n"sequences":[\n' + ",\n".join(runs) + "]}\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="fixtures to capture; default all")
    parser.add_argument("-o", "--out", type=pathlib.Path, default=OUT)
    parser.add_argument("--peer", action="store_true", help="store float32 and add the keys llama.cpp wants")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()  # it doubts tiny original_max_position_embeddings
    torch.manual_seed(0)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for fixture in FIXTURES:
        if args.names and fixture.name not in args.names:
            continue
        model = reference.build(fixture)
        path = args.out / f"{fixture.name}.gguf"
        gguf_out.write(fixture, model, path, "f32" if args.peer else fixture.store, args.peer)
        result = capture(fixture, model)
        (args.out / f"{fixture.name}.json").write_text(dump(result), encoding="utf-8")
        quiet = {k: v for k, v in result["sensitivity"].items() if v < SENSITIVITY_MIN}
        print(fixture.name, path.stat().st_size, "std", result["logits_std"], "margin",
              result.get("routing_margin_min"), result.get("routing_changes", ""), result["greedy"]["lead_min"])
        if quiet or result.get("routing_margin_min", 1) <= MARGIN_MIN:
            sys.exit(f"{fixture.name}: too quiet {quiet} or a near-tie in routing")


if __name__ == "__main__":
    main()
