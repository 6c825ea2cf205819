"""Runs a GPU build of drafthorse on a card and holds it to the CPU (scripts/gpu-check.sh starts it). Standard library only.

Owns what is run, in which order, and until when; what the figures mean stands in gpu_report.py. Every command and its
errors are in OUTDIR/gpu-check.log.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gpu_report

GIB = 1 << 30
# Positions whose logits are compared: the prompt of every correctness run.
PROMPT = [1, 17, 42, 99, 7, 250, 33, 64, 128, 5, 77, 180, 14, 201, 90, 3, 111, 56, 23, 149, 8, 61, 240, 31]
# Tokens of the benchmark's prompt.
BENCH_PROMPT = 16
# Small models of every architecture and of the formats synth writes; what it cannot write the kernels' tests cover.
SYNTHETIC = [
    ("tiny-deepseek2", "q4_k"), ("tiny-deepseek2", "f32"), ("tiny-qwen3moe", "q6_k"), ("tiny-qwen3moe", "q8_0"),
    ("tiny-mixtral", "q4_0"), ("tiny-mixtral", "q5_k"), ("tiny-llama", "q5_1"), ("tiny-llama", "bf16"),
    ("tiny-qwen3", "q3_k"), ("tiny-qwen3", "q2_k"), ("tiny-qwen3", "f16"), ("tiny-llama", "q4_1"), ("tiny-qwen3", "q5_0"),
]
# Shares of the experts that the card has room for. What cannot be is refused by the program with code 4.
SHARES = [0.75, 0.5, 0.3]
EXIT_BUDGET = 4
# What is said in place of a size where the card has no slots.
IN_PLACE = "experts in place"


class OutOfTime(Exception):
    """The command was not started or was ended, because the check's time is up."""


class Runner:
    """Runs the programs, within the check's time, and keeps the log."""

    def __init__(self, args, log):
        self.args, self.log = args, log
        self.end = time.monotonic() + args.limit_s

    def left_s(self):
        return self.end - time.monotonic()

    def run(self, command, limit_s=120):
        """(exit code, stdout, seconds). Code None: it ran past `limit_s`."""
        limit_s = min(limit_s, self.left_s())
        if limit_s <= 1:
            raise OutOfTime(command)
        command = [str(part) for part in command]
        self.log.write("$ " + " ".join(command) + "\n")
        begun = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, errors="replace")
        except subprocess.TimeoutExpired as expired:
            self.log.write(f"-> ended after {limit_s:.0f} s\n{expired.stderr or ''}\n")
            if self.left_s() <= 1:
                raise OutOfTime(command) from None
            return None, "", limit_s
        seconds = time.monotonic() - begun
        self.log.write(f"-> {done.returncode} in {seconds:.2f} s\n{done.stderr[-4000:]}\n")
        self.log.flush()
        return done.returncode, done.stdout, seconds

    def drafthorse(self, *arguments, limit_s=120):
        """The JSON object, or {"error": ...} with the exit code."""
        code, text, _ = self.run([self.args.drafthorse, *arguments, "--json"], limit_s)
        if code != 0:
            return {"error": "ran past its time" if code is None else f"exit code {code}", "code": code}
        try:
            return json.loads(text)
        except ValueError as error:
            return {"error": f"stdout is no JSON: {error}", "code": 0}


def say(text):
    print(text, file=sys.stderr, flush=True)


def machine(runner):
    """What was measured on."""
    facts = {"cpus": os.cpu_count(), "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    facts["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    code, text, _ = runner.run([runner.args.drafthorse, "--version"])
    facts["version"] = text.strip() if code == 0 else f"exit code {code}"
    fields = ["name", "driver_version", "memory.total", "pcie.link.gen.max", "pcie.link.width.max", "compute_cap"]
    if shutil.which("nvidia-smi"):
        code, text, _ = runner.run(["nvidia-smi", "--query-gpu=" + ",".join(fields), "--format=csv,noheader"], 30)
        if code == 0 and text.strip():
            facts["gpu"] = dict(zip(fields, [part.strip() for part in text.splitlines()[0].split(",")]))
    return facts


def kernel_tests(runner):
    """The tests of every GPU module, one after another: they share the card. Those that ran elsewhere do not count."""
    code, text, seconds = runner.run([runner.args.tests, "gpu::", "--test-threads", "1", "--nocapture"], 150)
    found = re.search(r"test result: \S+ (\d+) passed; (\d+) failed", text)
    skipped = sorted(set(re.findall(r"skipped: .*", text)))
    cards = sorted(set(re.findall(r"kernel tests run on: (.*)", text)))
    on_card = bool(cards) and not any("emulated" in card.lower() for card in cards)
    failed = re.findall(r"^test (\S+) \.\.\. .*FAILED$|^    (gpu::\S+)$", text, re.M)
    return {
        "passed": int(found[1]) if found else 0, "failed": sorted({a or b for a, b in failed}), "skipped": skipped,
        "cards": cards, "seconds": seconds,
        "ok": code == 0 and bool(found) and int(found[1]) > 0 and not skipped and on_card,
    }


def link_peak(runner):
    """The link's peak, and as `small` that of copies of an expert's size, one at a time and several behind each other."""
    code, text, _ = runner.run([runner.args.tests, "--ignored", "--nocapture", "gpu::cuda::tests::link_peak"], 60)
    found = re.search(r"link_peak (\{.*\})", text)
    if code != 0 or not found:
        return None
    return {**json.loads(found[1]), "small": [json.loads(line) for line in re.findall(r"link_small (\{.*\})", text)]}


def on_gpu(runner, size):
    """The settings that compute on the card, within so many bytes of its memory."""
    return ["--vram", size, "--gpu", runner.args.device]


def logits(runner, model, *more):
    tokens = ",".join(map(str, PROMPT))
    return runner.drafthorse("logits", model, "--tokens", tokens, "--all", *more, limit_s=60)


def generate(runner, model, *more, tokens, limit_s=60):
    prompt = ",".join(map(str, PROMPT))
    plain = ["--seed", "1", "--ignore-eos", "-n", tokens] + ([] if "--temp" in more else ["--temp", "0"])
    return runner.drafthorse("run", model, "--tokens", prompt, *plain, *more, limit_s=limit_s)


def difference(ours, reference):
    """None if every logit has the same bits, else what differs. The program prints floats so that they read back the same."""
    if "error" in ours or "error" in reference:
        return {"error": ours.get("error") or "CPU: " + reference["error"]}
    pairs = [(a, b) for x, y in zip(ours["positions"], reference["positions"]) for a, b in zip(x, y)]
    wanted = sum(map(len, reference["positions"]))
    if len(pairs) != wanted or sum(map(len, ours["positions"])) != wanted:
        return {"error": "another number of logits"}
    distances = [abs(a - b) if a == a and b == b else float("inf") for a, b in pairs if a != b]
    return {"differing": len(distances), "of": wanted, "max": max(distances)} if distances else None


def vram_sizes(runner, model):
    """The size that holds all of it, and for a mixture smaller ones to try: [(label, bytes)]."""
    whole = generate(runner, model, *on_gpu(runner, GIB), "--draft", "none", tokens=1)
    gpu, offload = whole.get("gpu") or {}, whole.get("offload") or {}
    if "planned_bytes" not in gpu or not offload.get("experts_total"):
        return [("all", GIB)]
    experts = gpu["slots"] * offload["slot_bytes"]
    shares = [(f"{share:.0%} of its experts", int(gpu["planned_bytes"] - (1 - share) * experts)) for share in SHARES]
    return [("all", GIB)] + shares


def check_in_place(runner, rows, name, model, work, tokens, reference):
    """Experts that kernels read in the host's memory, as they do where a GPU shares it: over the link, on any card."""
    config = work / "unified.toml"
    config.write_text("[gpu]\nunified = true\n")
    more = [*on_gpu(runner, GIB), "--config", config]
    wrong = difference(logits(runner, model, *more), reference)
    rows.append({"model": name, "vram": IN_PLACE, "what": "logits", "ok": wrong is None, "wrong": wrong})
    for drafting in (["--draft", "none"], ["--draft", "ngram", "--draft-len", 4]):
        text = generate(runner, model, "--draft", "none", tokens=tokens)
        out = generate(runner, model, *more, *drafting, tokens=tokens)
        gpu = out.get("gpu") or {}
        wrong = out.get("error")
        if not wrong and out.get("tokens") != text.get("tokens"):
            wrong = "other ids than the CPU's"
        elif not wrong and not (gpu.get("unified") and gpu.get("slots") == 0 and gpu.get("upload_bytes") == 0):
            wrong = "experts were not read in place"
        rows.append({"model": name, "vram": IN_PLACE, "what": f"ids, draft {drafting[1]}", "settings": "", "ok": wrong is None,
                     "slots": gpu.get("slots"), "misses": gpu.get("misses"), "wrong": wrong})


def check_model(runner, rows, name, model, drafts, work):
    """GPU against CPU at every size: one row a comparison."""
    reference = logits(runner, model)
    texts, tokens = {}, 8 if runner.args.quick else 48
    sizes = vram_sizes(runner, model)
    if len(sizes) > 1:
        check_in_place(runner, rows, name, model, work, tokens, reference)
    for label, size in sizes:
        ours = logits(runner, model, *on_gpu(runner, size))
        if ours.get("code") == EXIT_BUDGET and label != "all":
            rows.append({"model": name, "vram": label, "what": "logits", "refused": True})
            continue
        wrong = difference(ours, reference)
        rows.append({"model": name, "vram": label, "what": "logits", "ok": wrong is None, "wrong": wrong})
        for draft, length, more in drafts:
            key = tuple(more)
            if key not in texts:
                texts[key] = generate(runner, model, "--draft", "none", *more, tokens=tokens)
            drafting = ["--draft", draft] + (["--draft-len", length] if draft != "none" else [])
            out = generate(runner, model, *on_gpu(runner, size), *drafting, *more, tokens=tokens)
            ok = "tokens" in out and out["tokens"] == texts[key].get("tokens")
            gpu = out.get("gpu") or {}
            rows.append({
                "model": name, "vram": label, "what": f"ids, draft {draft}" + (f" {length}" if length else ""),
                "settings": " ".join(more), "ok": ok and bool(gpu), "slots": gpu.get("slots"), "misses": gpu.get("misses"),
                "wrong": None if ok and gpu else out.get("error") or ("no gpu object" if ok else "other ids than the CPU's"),
            })


def correctness(runner, rows, work):
    demo = Path(runner.args.demo)
    warm = ["--temp", "0.8"]
    drafts = [("none", None, []), ("none", None, warm)]
    drafts += [(demo / "draft.gguf", length, []) for length in (1, 4, 8)] + [("ngram", 4, warm)]
    drafts += [(demo / "draft.gguf", 4, warm), ("none", None, ["--kv-type", "q8_0"])]
    models = [("demo", demo / "target.gguf", drafts[2:5] if runner.args.quick else drafts)]
    for shape, quant in SYNTHETIC[: 1 if runner.args.quick else None]:
        path = work / f"{shape}-{quant}.gguf"
        code, _, _ = runner.run([runner.args.eval, "synth", "--shape", shape, "--quant", quant, "-o", path])
        if code != 0:
            rows.append({"model": path.stem, "vram": "-", "what": "synth", "ok": False, "wrong": f"exit code {code}"})
            continue
        models.append((path.stem, path, [("none", None, []), ("ngram", 4, [])]))
    for name, path, drafts in models:
        say(f"correctness: {name}")
        check_model(runner, rows, name, path, drafts, work)


def timed(runner, rows, label, model, *more, tokens, vram, limit_s=60):
    """One run as one row of the speed table."""
    out = generate(runner, model, *more, *(on_gpu(runner, vram) if vram else []), tokens=tokens, limit_s=limit_s)
    keys = ("error", "code", "timings", "attribution", "speculation", "offload", "gpu", "tokens")
    rows.append({"what": label, "vram_bytes": vram, **{key: out[key] for key in keys if key in out}})
    return out


def demo_speed(runner, rows):
    demo = Path(runner.args.demo)
    model, draft = demo / "target.gguf", demo / "draft.gguf"
    for vram in (None, GIB):
        timed(runner, rows, "demo, no draft", model, "--draft", "none", tokens=256, vram=vram)
        timed(runner, rows, "demo, draft auto", model, "--draft", draft, tokens=256, vram=vram)
        timed(runner, rows, "demo, ngram auto", model, "--draft", "ngram", tokens=256, vram=vram)


def bench(runner, model, *more, tokens, vram, repeats, limit_s=90):
    """The program's own benchmark: decoding with a cache that the run before has filled, and passes of several widths."""
    out = runner.drafthorse("bench", model, "-p", BENCH_PROMPT, "-n", tokens, "--repeat", repeats, *more,
                            *on_gpu(runner, vram), limit_s=limit_s)
    return {"vram_bytes": vram, **{key: out[key] for key in ("error", "rows", "passes", "gpu", "prompt") if key in out}}


def script_of(runner, model, memory, work, vram, prompt_ids, tokens):
    """The drafter that knows the text after the benchmark's prompt and errs as one of acceptance 0.8 would."""
    prompt = ",".join(map(str, prompt_ids))
    out = runner.drafthorse("run", model, "--tokens", prompt, "--seed", 1, "--temp", 0, "--ignore-eos", "-n", tokens, *memory,
                            "--draft", "none", *on_gpu(runner, vram))
    script = work / "bench-script"
    script.write_text(",".join(map(str, prompt_ids + out.get("tokens", []))))
    return ["--draft", f"script:{script},accept=0.8,us=500,seed=1"]


def resident_speed(runner, model, memory, work, speed, vram):
    """Everything on the card, nothing cold: with and without a draft, in turns."""
    tokens = 256
    first = bench(runner, model, *memory, "--draft", "none", tokens=tokens, vram=vram, repeats=1)
    scripted = script_of(runner, model, memory, work, vram, first.get("prompt", []), tokens + 1)
    for _ in range(2):
        for drafting, more in (("none", ["--draft", "none"]), ("auto", scripted)):
            out = bench(runner, model, *memory, *more, tokens=tokens, vram=vram, repeats=1)
            speed["resident"].append({"draft": drafting, **out})
    profile = work / "profile.toml"
    profile.write_text("[gpu]\nprofile = true\n")
    # Long enough for the passes that fill the cache to be few.
    perfect = [scripted[0], scripted[1].replace("accept=0.8,us=500", "accept=1,us=0"), "--draft-len", 7]
    for label, drafting, tokens in (("one row a pass", ["--draft", "none"], 64), ("eight rows a pass", perfect, tokens)):
        out = runner.drafthorse("run", model, "--tokens", ",".join(map(str, first.get("prompt", []))), "--seed", 1, "--temp", 0,
                                "--ignore-eos", "-n", tokens, *memory, *drafting, "--config", profile, *on_gpu(runner, vram))
        speed["profiled"].append({"what": label, "vram_bytes": vram, **{k: out[k] for k in ("error", "gpu") if k in out}})


def lanes_speed(runner, model, memory, work, speed, half, quarter):
    """Room for half of the experts, the rest in the host's memory: copied in, or computed there as well, in turns that begin
    with either. With room for a quarter copies alone, as there are more of them."""
    copies_only = work / "copies-only.toml"
    copies_only.write_text("[gpu]\nhybrid = false\n")
    kinds = {False: ["--config", copies_only], True: []}
    for vram, hybrid in [(half, kind) for kind in (False, True, True, False, False, True)] + [(quarter, False)] * 2:
        out = bench(runner, model, *memory, "--draft", "none", *kinds[hybrid], tokens=192, vram=vram, repeats=1)
        speed["lanes"].append({"hybrid": hybrid, **out})


def mid_speed(runner, work, speed):
    """The mixture at every size. The drafter knows the answer and errs as one of acceptance 0.8 would."""
    model = work / "mid.gguf"
    say(f"speed: writing mid, {runner.args.layers} layers")
    code, _, seconds = runner.run(
        [runner.args.eval, "synth", "--shape", "mid", "--layers", runner.args.layers, "--quant", "q4_k", "-o", model], 180)
    if code != 0:
        speed["mid_error"] = f"synth ended with {code} after {seconds:.0f} s"
        return
    size = model.stat().st_size
    speed["mid"] = {"layers": runner.args.layers, "file_bytes": size, "synth_s": seconds}
    memory = ["--memory", 2 * size + 4 * GIB, "--context", 512]
    whole = (size // GIB + 4) * GIB
    first = timed(runner, speed["rows"], "mid, no draft", model, *memory, "--draft", "none", tokens=96, vram=whole)
    script = work / "script"
    script.write_text(",".join(map(str, PROMPT + first.get("tokens", []))))
    scripted = ["--draft", f"script:{script},accept=0.8,us=500,seed=1"]
    timed(runner, speed["rows"], "mid, draft auto", model, *memory, *scripted, tokens=96, vram=whole)
    say("speed: mid, resident")
    resident_speed(runner, model, memory, work, speed, whole)
    say("speed: mid, half of its experts on the card, and a quarter")
    lanes_speed(runner, model, memory, work, speed, whole // 2 - GIB, whole // 4)
    for gib in (4, 8, 12):
        say(f"speed: mid at {gib} GiB")
        for label, drafting in (("mid, no draft", ["--draft", "none"]), ("mid, draft auto", scripted)):
            timed(runner, speed["rows"], label, model, *memory, *drafting, tokens=96, vram=gib * GIB)
    timed(runner, speed["rows"], "mid, no draft", model, *memory, "--draft", "none", tokens=32, vram=None)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    for program in ("--drafthorse", "--eval", "--tests", "--demo"):
        parser.add_argument(program, required=True)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--limit-s", type=float, default=460)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("out", type=Path)
    return parser.parse_args()


def roomiest(need):
    """Memory, if it holds the files, else the disk."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and shutil.disk_usage(shm).free > need else None


def main():
    args = arguments()
    result = {"out_of_time": None, "speed": {"rows": [], "resident": [], "lanes": [], "profiled": []}, "correctness": []}
    begun = time.monotonic()
    with open(args.out / "gpu-check.log", "w") as log, tempfile.TemporaryDirectory(dir=roomiest(10 * GIB)) as work:
        runner, stage = Runner(args, log), "machine"
        result["files_in"] = work
        try:
            result["machine"] = machine(runner)
            stage = "kernel tests"
            result["kernel_tests"] = kernel_tests(runner)
            stage = "link"
            result["link"] = link_peak(runner)
            stage = "correctness"
            correctness(runner, result["correctness"], Path(work))
            stage = "speed of the demo pair"
            demo_speed(runner, result["speed"]["rows"])
            stage = "speed of mid"
            mid_speed(runner, Path(work), result["speed"])
        except OutOfTime:
            result["out_of_time"] = stage
    result["seconds"] = time.monotonic() - begun
    result["verdicts"] = gpu_report.verdicts(result)
    (args.out / "gpu-check.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "gpu-check.md").write_text(gpu_report.markdown(result))
    print((args.out / "gpu-check.md").read_text())
    sys.exit(0 if gpu_report.is_right(result) else 1)


if __name__ == "__main__":
    main()
