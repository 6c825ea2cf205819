#!/usr/bin/env python3
"""Prefill, decode and verification in memory: ours and llama.cpp in turns on the same files.

speed_table.py --ours target/release/drafthorse --bench llama.cpp/build/bin/llama-bench -o eval/results/speed
               [--repeat 3] [--threads 2] [-p 256] [-n 64] [--memory 14GiB] MODEL.gguf ...

Per model and repeat: ours, llama.cpp without and with repacked weights, ours, ... Medians go to OUT.md, all
numbers to OUT.json. Needs nothing but the two programs; the machine should be quiet.
"""
import argparse, datetime, json, os, platform, statistics, subprocess, sys

def run(*command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr.decode(errors='replace')[-500:]}")
    return json.loads(done.stdout)

def ours(args, model):
    report = run(args.ours, "bench", model, "-p", args.p, "-n", args.n, "--repeat", 1, "--json",
                 "--memory", args.memory, "--threads", args.threads)
    rate = {row["phase"]: row["tokens_per_s"]["median"] for row in report["rows"] if row["cache"] == "warm"}
    passes = {str(one["rows"]): one["seconds"]["median"] for one in report["passes"]}
    return {"prefill": rate["prefill"], "decode": rate["decode"], "passes": passes}

def peer(args, model, repack):
    tests = run(args.bench, "-m", model, "-t", args.threads, "-p", args.p, "-n", args.n, "-r", 1,
                "--repack", repack, "-o", "json")
    return {"prefill" if test["n_prompt"] else "decode": test["avg_ts"] for test in tests}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, default in (("--ours", None), ("--bench", None), ("-o", None), ("--memory", "14GiB")):
        parser.add_argument(flag, default=default, required=default is None)
    for flag, default in (("--repeat", 3), ("--threads", 2), ("-p", 256), ("-n", 64)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    results = {}
    for model in args.models:
        runs = {"ours": [], "peer": [], "peer repacked": []}
        for _ in range(args.repeat):
            runs["ours"].append(ours(args, model))
            runs["peer"].append(peer(args, model, 0))
            runs["peer repacked"].append(peer(args, model, 1))
        results[os.path.basename(model)] = runs
        print(os.path.basename(model), json.dumps(runs), file=sys.stderr)
    median = lambda runs, key: statistics.median(run[key] for run in runs)
    lines = [f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {args.threads} threads, "
             f"prompt {args.p}, generated {args.n}, medians of {args.repeat} in turns; tok/s, llama.cpp as the "
             "better of plain and repacked; passes as multiples of one row.", "", f"`{' '.join(sys.argv)}`", "",
             "| model | prefill ours, llama.cpp | ratio | decode ours, llama.cpp | ratio | 2, 4, 8 rows |",
             "|---|---|---|---|---|---|"]
    for model, runs in results.items():
        row = model
        for phase in ("prefill", "decode"):
            mine = median(runs["ours"], phase)
            theirs = max(median(runs[kind], phase) for kind in ("peer", "peer repacked"))
            row += f" | {mine:.1f}, {theirs:.1f} | {mine / theirs:.2f}"
        one = statistics.median(run["passes"]["1"] for run in runs["ours"])
        ratio = lambda rows: statistics.median(run["passes"][rows] for run in runs["ours"]) / one
        lines.append(f"| {row} | {', '.join(f'{ratio(rows):.2f}' for rows in ('2', '4', '8'))} |")
    open(args.o + ".md", "w").write("\n".join(lines) + "\n")
    json.dump({"command": sys.argv, "runs": results}, open(args.o + ".json", "w"), indent=1)
    print("\n".join(lines))

main()
