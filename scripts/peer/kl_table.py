#!/usr/bin/env python3
"""KL of our logits and of llama.cpp's own settings against llama.cpp's defaults, quant by quant.

usage: kl_table.py --eval DRAFTHORSE_EVAL --peer FOLDER --quantize LLAMA_QUANTIZE --text FILE -o OUT_PREFIX
                   [--imatrix LLAMA_IMATRIX] [--model TARGET.gguf] [--chunks N] [--work FOLDER]
                   [--threads N] [--quants A,B,..] [--shapes A,B,..]

Owns the list of quants and settings, and the table. TARGET (default: the demo's) is requantized with
llama-quantize into every quant (those below 3 bits with an importance matrix of TEXT, which llama.cpp
asks for); each file is read by llama.cpp with its defaults, by llama.cpp with one setting changed, and by
us, over the same ids; `drafthorse-eval ppl` compares. So are the tiny random models of `drafthorse-eval synth`
(--shapes), over random ids. FOLDER holds logits_ids (build.sh). A format that we refuse is a line that says
so. Writes OUT_PREFIX.md and OUT_PREFIX.json; rerunning replaces them.
"""
import argparse
import datetime
import json
import pathlib
import random
import shlex
import subprocess
import sys

QUANTS = ("F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_1 Q5_0 Q4_K_M Q4_1 Q4_0 Q3_K_M Q2_K IQ4_NL IQ4_XS IQ3_S IQ3_XXS IQ2_S "
          "IQ2_XS IQ2_XXS IQ1_M IQ1_S MXFP4_MOE").split()
SHAPES = "tiny-llama tiny-qwen3 tiny-mixtral tiny-qwen3moe tiny-deepseek2".split()
SHAPE_QUANTS, SHAPE_VOCAB = ("f16", "q8_0", "q4_k"), 512
# What is changed from the base, the defaults: repacked, flash attention, F16 cache, 512 a pass. An F32 cache
# alone changes nothing: with flash attention llama.cpp rounds its keys and values to F16.
SETTINGS = {
    "one token a pass": ["-b", "1"],
    "not repacked": ["--no-repack"],
    "no flash attention": ["--flash", "off"],
    "F32 cache, no flash": ["--kv", "f32", "--flash", "off"],
}
PEER = "0c1e57098 (ggml 0.25.3)"
OURS, CLEAN = "ours", "ours, base F32 cache without flash"


def run(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def checked(*command):
    result = run(*command)
    if result.returncode:
        sys.exit(f"{shlex.join(map(str, command))}: exit {result.returncode}: {result.stderr.strip()[-400:]}")
    return result.stdout


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


class Table:
    """The rows so far, and what making one takes."""

    def __init__(self, args, about):
        self.args, self.work, self.about = args, args.work, about
        self.rows = []

    def quantized(self, quant):
        file = self.work / f"{quant}.gguf"
        if file.exists():
            return file
        matrix = ["--imatrix", self.work / "imatrix.gguf"] if self.args.imatrix else []
        result = run(self.args.quantize, "--allow-requantize", *matrix, self.args.model, file, quant)
        if result.returncode:
            file.unlink(missing_ok=True)
            print(f"{quant}: not made: {last_line(result.stderr + result.stdout)}", file=sys.stderr)
            return None
        return file

    def peer(self, model, ids, name, flags):
        file = self.work / f"{name}.logits"
        checked(self.args.peer / "logits_ids", "-m", model, "-i", ids, "-o", file, "-c", self.args.context,
                "-t", self.args.threads, *flags)
        return file

    def ppl(self, source, ids, base):
        return [self.args.eval, "ppl", *source, "--ids", ids, "--context", self.args.context, "--kl-base", base,
                "--json"]

    def measure(self, label, model, ids):
        base = self.peer(model, ids, "base", [])
        row = {"model": label, "bytes": model.stat().st_size, "peer": {}}
        for index, (name, flags) in enumerate(SETTINGS.items()):
            other = self.peer(model, ids, f"setting-{index}", flags)
            row["peer"][name] = json.loads(checked(*self.ppl(["--logits", other], ids, base)))
        clean = self.work / f"setting-{len(SETTINGS) - 1}.logits"
        for name, against in ((OURS, base), (CLEAN, clean)):
            source = [model, "--memory", self.args.memory, "--threads", self.args.threads]
            result = run(*self.ppl(source, ids, against))
            row[name] = json.loads(result.stdout) if result.returncode == 0 else {"refused": last_line(result.stderr)}
        self.rows.append(row)
        print(line(row), file=sys.stderr, flush=True)
        self.write()

    def write(self):
        """After every row: a long run that is cut short leaves what it has."""
        pathlib.Path(self.args.out + ".md").write_text(markdown(self.rows, self.about))
        document = {**self.about, "rows": self.rows}
        pathlib.Path(self.args.out + ".json").write_text(json.dumps(document, indent=1) + "\n")


def worst(row):
    name, report = max(row["peer"].items(), key=lambda item: item[1]["kl"]["mean"])
    return name, report["kl"]


def cell(report):
    return "refused" if "refused" in report else f"{report['kl']['mean']:.2e}"


def line(row):
    peers = " | ".join(cell(report) for report in row["peer"].values())
    ours = row[OURS]
    base_ppl = next(iter(row["peer"].values()))["kl"]["base_ppl"]
    if "refused" in ours:
        return f"| {row['model']} | {base_ppl:.4f} | refused | | {peers} | | | |"
    name, most = worst(row)
    least = ours["kl"]["mean"] - ours["kl"]["mean_error"]
    verdict = "yes" if least <= most["mean"] + most["mean_error"] else f"{ours['kl']['mean'] / most['mean']:.1f}x"
    return (f"| {row['model']} | {base_ppl:.4f} | {ours['ppl']:.4f} | {cell(ours)} | {peers} | {cell(row[CLEAN])} | "
            f"{100 * ours['kl']['top1_agreement']:.2f} : {100 * most['top1_agreement']:.2f} | {verdict} |")


def about():
    cpu = next((text.split(":")[1].strip() for text in open("/proc/cpuinfo") if text.startswith("model name")), "?")
    return {
        "command": shlex.join(sys.argv),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{cpu}, {checked('nproc').strip()} cores, {checked('uname', '-sr').strip()}",
        "commit": checked("git", "-C", pathlib.Path(__file__).parent, "rev-parse", "--short", "HEAD").strip(),
        "peer": PEER,
    }


def markdown(rows, about):
    head = ["model", "ppl, llama.cpp", "ppl, ours", OURS, *SETTINGS, CLEAN, "same likeliest %, ours : peer", "within"]
    lines = ["# KL of our logits and of llama.cpp's own settings", "", f"`{about['command']}`", "",
             f"{about['date']}; {about['machine']}; ours at {about['commit']}; llama.cpp {about['peer']}.", "",
             "Mean KL(llama.cpp with its defaults || column), in nats: the defaults are repacked weights, flash "
             "attention, an F16 cache and 512 tokens a pass. *Within*: ours is no farther from them than the "
             "farthest of llama.cpp's own settings (standard errors allowed for), or how many times as far.", "",
             "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *map(line, rows), ""]
    refused = [f"- {row['model']}: {row[OURS]['refused']}" for row in rows if "refused" in row[OURS]]
    return "\n".join(lines + refused + ([""] if refused else []))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parents[2]
    path = pathlib.Path
    for flag in ("--eval", "--peer", "--quantize", "--text"):
        parser.add_argument(flag, type=path, required=True)
    parser.add_argument("-o", dest="out", required=True)
    parser.add_argument("--imatrix", type=path)
    parser.add_argument("--model", type=path, default=root / "runtime/demo/target.gguf")
    parser.add_argument("--chunks", default="8")
    parser.add_argument("--context", default="512")
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--work", type=path, default=path("/tmp/kl"))
    parser.add_argument("--quants", default=",".join(QUANTS))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    return parser.parse_args()


def main():
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    table, ids = Table(args, about()), args.work / "ids"
    checked(args.eval, "ppl", args.model, "--text", args.text, "--context", args.context, "--chunks", args.chunks,
            "--memory", args.memory, "--ids-out", ids)
    if args.imatrix and not (args.work / "imatrix.gguf").exists():
        checked(args.imatrix, "-m", args.model, "-f", args.text, "-o", args.work / "imatrix.gguf",
                "-t", args.threads, "--chunks", "32")
    for quant in filter(None, args.quants.split(",")):
        model = table.quantized(quant)
        if model:
            table.measure(quant, model, ids)
    chance, noise = random.Random(1), args.work / "random-ids"
    noise.write_text(" ".join(str(chance.randrange(SHAPE_VOCAB)) for _ in range(int(args.context))))
    for shape in filter(None, args.shapes.split(",")):
        for quant in SHAPE_QUANTS:
            model = args.work / f"{shape}.{quant}.gguf"
            checked(args.eval, "synth", "--shape", shape, "--quant", quant, "-o", model)
            table.measure(f"{shape} {quant}", model, noise)


main()
