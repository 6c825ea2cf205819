"""What the figures of gpu_check.py mean: verdicts against the goals of the GPU issue, and the Markdown table. Runs nothing."""

import statistics

# The goals: 8 rows of a verification against one, speculation at acceptance 0.8 against none, copies while missing
# against the link's peak.
ROWS_8_MAX = 1.5
SPECULATION_MIN = 1.5
LINK_SHARE_MIN = 0.85
# Share of the missing experts that the processor has to get for a comparison with copies alone to say anything.
LANES_SHARED_MIN = 0.02
# Lines of the table of kernels.
KERNELS_SHOWN = 16


def is_right(result):
    """Whether everything that was run is right. Goals of speed that were missed do not count."""
    return all(verdict["ok"] for verdict in result["verdicts"] if verdict["kind"] == "right" and verdict["ok"] is not None)


def verdicts(result):
    """[{kind: right|goal, what, ok (None: not run), figure}]"""
    tests, rows = result.get("kernel_tests"), [row for row in result["correctness"] if not row.get("refused")]
    wrong = [row for row in rows if not row["ok"]]
    found = [
        verdict("right", "kernels' tests on the card", tests and tests["ok"], tests and tests_figure(tests)),
        verdict("right", "logits and ids as the CPU's", (not wrong) if rows else None,
                f"{len(rows) - len(wrong)} of {len(rows)} comparisons"),
        verdict("right", "ids the same at every size and draft of the speed runs", same_ids(result["speed"]["rows"]), ""),
        verdict("right", "a limited --vram was met", limited(rows), "a run whose experts did not all fit"),
    ]
    return found + goals(result)


def verdict(kind, what, ok, figure):
    return {"kind": kind, "what": what, "ok": ok, "figure": figure or ""}


def tests_figure(tests):
    cards = ", ".join(tests["cards"]) or "no card named"
    parts = [f"{tests['passed']} passed in {tests['seconds']:.0f} s on {cards}"] + [f"failed: {name}" for name in tests["failed"]]
    return "; ".join(parts + tests["skipped"])


def same_ids(rows):
    """Every run of a model gives the ids of its longest run, as far as it goes, and none failed. Runs that ran past their
    time say nothing. None without runs."""
    by_model = {}
    for row in rows:
        if row.get("code") is None and "error" in row:
            continue
        by_model.setdefault(row["what"].split(",")[0], []).append(row.get("tokens"))
    if not by_model:
        return None
    return all(all(ids is not None and ids == max(runs, key=lambda r: len(r or []))[: len(ids)] for ids in runs)
               for runs in by_model.values())


def limited(rows):
    seen = [row for row in rows if row["vram"] not in ("all", "-") and (row.get("misses") or 0) > 0 and row["ok"]]
    return bool(seen) if rows else None


def goals(result):
    speed = result["speed"]
    eight = next((p["ratio"] for p in passes(speed["resident"]) if p["rows"] == 8), None)
    ratio = of_medians(speed["resident"], "draft", "auto", "none")
    share = link_share(result)
    both = of_medians(speed["lanes"], "hybrid", True, False)
    shared = to_processor([run for run in speed["lanes"] if run["hybrid"]])
    figure = "no run missed, or no peak"
    if share:
        figure = f"{share:.0%}" + (f"; such copies alone reach {alone_share(result):.0%}" if alone_share(result) else "")
    return [
        verdict("goal", f"8 rows <= {ROWS_8_MAX} of one, resident", eight and eight <= ROWS_8_MAX, number(eight)),
        verdict("goal", f"speculation at acceptance 0.8 >= {SPECULATION_MIN}, resident", ratio and ratio >= SPECULATION_MIN,
                number(ratio)),
        verdict("goal", f"copies while missing >= {LINK_SHARE_MIN:.0%} of the link", share and share >= LINK_SHARE_MIN,
                figure),
        # Runs of one command differ by a few percent. Where the processor gets next to nothing, both kinds do the same.
        verdict("goal", "experts on both >= 0.97 of copies alone", both >= 0.97 if both and shared > LANES_SHARED_MIN else None,
                number(both) + (f"; {shared:.1%} of what was missing went to the processor" if both else "")),
    ]


def warm_row(run):
    """Decoding where the run before has filled every cache."""
    return next((row for row in run.get("rows") or [] if row["phase"] == "decode" and row["cache"] == "warm"), None)


def warm_rate(run):
    """Its tokens a second."""
    row = warm_row(run)
    return row["tokens_per_s"]["median"] if row else None


def of_medians(runs, key, over, under):
    """The median rate of one kind of benchmark over that of another, run in turns with it; of several sizes the worst."""
    ratios = []
    for vram in {run["vram_bytes"] for run in runs}:
        of_size = [run for run in runs if run["vram_bytes"] == vram]
        rates = [[warm_rate(run) for run in of_size if run[key] == kind and warm_rate(run)] for kind in (over, under)]
        ratios += [statistics.median(rates[0]) / statistics.median(rates[1])] if all(rates) else []
    return min(ratios, default=None)


def passes(runs):
    """Seconds by rows of a pass: medians over the runs' medians."""
    done = [run["passes"] for run in runs if run.get("passes") and run.get("draft") == "none"]
    if not done:
        return []
    widths = [p["rows"] for p in done[0]]
    seconds = {rows: statistics.median(p["seconds"]["median"] for each in done for p in each if p["rows"] == rows) for rows in widths}
    return [{"rows": rows, "seconds": seconds[rows], "ratio": seconds[rows] / seconds[1]} for rows in widths]


def number(value):
    return "not run" if value is None else f"{value:.2f}"


def rate(row):
    return (row.get("timings") or {}).get("decode_tps")


def copy_rate(row):
    gpu = row.get("gpu") or {}
    return gpu["upload_bytes"] / gpu["upload_s"] if gpu.get("upload_s") and gpu.get("misses") else None


def link_share(result):
    """Rate of copies, where experts that the card has no room for are all in the host's memory, over the link's peak: at the
    size with the most to copy, since a lane that is idle between two copies shows in no rate of copies."""
    runs = [run for run in result["speed"]["lanes"] if not run["hybrid"] and copy_rate(run)]
    least = min((run["vram_bytes"] for run in runs), default=None)
    rates = [copy_rate(run) for run in runs if run["vram_bytes"] == least]
    peak = (result.get("link") or {}).get("upload_bytes_per_s")
    return statistics.median(rates) / peak if rates and peak else None


def to_processor(runs):
    """Share of the missing experts that the processor computed."""
    gpus = [run.get("gpu") or {} for run in runs]
    misses = sum(gpu.get("misses") or 0 for gpu in gpus)
    return sum(gpu.get("host_experts") or 0 for gpu in gpus) / misses if misses else 0.0


def alone_share(result):
    """What copies of an expert's size reach of the link's peak one at a time, with nothing else to do."""
    link = result.get("link") or {}
    alone = [rate["upload_bytes_per_s"] for rate in link.get("small", []) if rate["at_once"] == 1]
    return alone[0] / link["upload_bytes_per_s"] if alone and link.get("upload_bytes_per_s") else None


def markdown(result):
    parts = [heading(result), verdict_table(result["verdicts"]), speed_table(result["speed"]["rows"])]
    parts += [time_table(result["speed"]["rows"]), passes_table(passes(result["speed"]["resident"])), bench_table(result["speed"]), kernel_table(result["speed"]["profiled"])]
    parts += [wrong_list(result["correctness"]), refused_line(result["correctness"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(result):
    facts, link = result.get("machine") or {}, result.get("link")
    lines = [f"# GPU check, {facts.get('date', 'no date')}", ""]
    gpu = facts.get("gpu") or {}
    lines.append(", ".join(filter(None, [
        gpu.get("name"), gpu.get("memory.total"), gpu.get("driver_version") and f"driver {gpu['driver_version']}",
        f"{facts.get('cpus')} CPUs", facts.get("version"), f"{result['seconds']:.0f} s",
    ])) + ".")
    for small in (link or {}).get("small", []):
        lines.append(f"Copies of {small['copy_bytes'] / (1 << 20):.1f} MiB, {small['at_once']} at a time: "
                     f"{gb(small['upload_bytes_per_s'])}.")
    if link:
        lines.append(f"Link, pinned, copies of {link['copy_bytes'] >> 20} MiB: {gb(link['upload_bytes_per_s'])} to the card, "
                     f"{gb(link['download_bytes_per_s'])} back.")
    mid = result["speed"].get("mid")
    if mid:
        lines.append(f"mid: {mid['layers']} layers, {mid['file_bytes'] / 1e9:.2f} GB, Q4_K, random weights, files in "
                     f"{result['files_in'].rsplit('/', 1)[0]}; its draft is scripted (acceptance 0.8, 0.5 ms a token).")
    if result.get("out_of_time"):
        lines.append(f"**Out of time** during: {result['out_of_time']}. What follows it was not run.")
    if result["speed"].get("mid_error"):
        lines.append(f"**mid was not run**: {result['speed']['mid_error']}.")
    return "\n".join(lines)


def gb(rate_bytes):
    return f"{rate_bytes / 1e9:.1f} GB/s"


def verdict_table(found):
    word = {True: "yes", False: "**NO**", None: "not run"}
    lines = ["| | held | figure |", "|---|---|---|"]
    return "\n".join(lines + [f"| {v['what']} | {word[v['ok']]} | {v['figure']} |" for v in found])


def speed_table(rows):
    """waited: seconds in which the host waited for copies; on CPU: experts that its threads computed instead."""
    if not rows:
        return ""
    lines = ["| run | vram | tok/s | prefill tok/s | accepted a pass | slots | hits % | copies | copy rate | waited s | on CPU | decode s |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    return "\n".join(lines + [speed_line(row) for row in rows])


def speed_line(row):
    vram = vram_of(row)
    if "error" in row:
        return f"| {row['what']} | {vram} | {row['error']} |" + " |" * 9
    gpu, timings, said = row.get("gpu") or {}, row["timings"], row.get("speculation") or {}
    uses = (gpu.get("hits") or 0) + (gpu.get("misses") or 0)
    cells = [
        row["what"], vram, f"{timings['decode_tps']:.1f}", f"{timings['prefill_tps']:.1f}",
        f"{said['accepted_per_pass']:.2f}" if said.get("proposed") else "-", gpu.get("slots", "-"),
        f"{100 * gpu['hits'] / uses:.1f}" if uses else "-",
        f"{gpu['upload_bytes'] / 1e9:.2f} GB" if gpu.get("upload_bytes") else "-",
        gb(copy_rate(row)) if copy_rate(row) else "-", f"{gpu['upload_wait_s']:.3f}" if "upload_wait_s" in gpu else "-",
        gpu.get("host_experts", "-"), f"{timings['decode_s']:.3f}",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def time_table(rows):
    """Where the seconds of decoding went, as the program attributes them."""
    timed = [row for row in rows if row.get("attribution")]
    if not timed:
        return ""
    keys = [key for key in timed[0]["attribution"] if key != "wall_s"]
    lines = ["| time, % of decoding | vram | " + " | ".join(key.removesuffix("_s") for key in keys) + " |",
             "|---|---|" + "---|" * len(keys)]
    for row in timed:
        wall = row["attribution"]["wall_s"] or 1.0
        shares = [f"{100 * row['attribution'].get(key, 0) / wall:.0f}" for key in keys]
        lines.append(f"| {row['what']} | {vram_of(row)} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def vram_of(row):
    return f"{row['vram_bytes'] / (1 << 30):.0f} GiB" if row["vram_bytes"] else "CPU"


def passes_table(all_passes):
    if not all_passes:
        return ""
    lines = ["| rows of a pass (mid, resident) | ms | of one row |", "|---|---|---|"]
    return "\n".join(lines + [f"| {p['rows']} | {1e3 * p['seconds']:.2f} | {p['ratio']:.2f} |" for p in all_passes])


def bench_table(speed):
    """Benchmarks in the order they ran: decoding behind a run that has filled every cache."""
    if not speed["resident"] + speed["lanes"]:
        return ""
    lines = ["| mid, warm | vram | tok/s | accepted a pass | hits % | copies | copy rate | on CPU |", "|---|---|---|---|---|---|---|---|"]
    for run in speed["resident"]:
        lines.append(bench_line("draft " + run["draft"], run))
    for run in speed["lanes"]:
        lines.append(bench_line("no draft, " + ("experts on both" if run["hybrid"] else "copies only"), run))
    return "\n".join(lines)


def bench_line(label, run):
    gpu, row = run.get("gpu") or {}, warm_row(run)
    uses = (gpu.get("hits") or 0) + (gpu.get("misses") or 0)
    cells = [
        label, vram_of(run), f"{warm_rate(run):.1f}" if row else run.get("error", "-"),
        f"{row['accepted_per_pass']:.2f}" if row and run.get("draft") == "auto" else "-",
        f"{100 * gpu['hits'] / uses:.1f}" if uses else "-",
        f"{gpu['upload_bytes'] / 1e9:.2f} GB" if gpu.get("upload_bytes") else "-", gb(copy_rate(run)) if copy_rate(run) else "-",
        gpu.get("host_experts", "-"),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def kernel_table(rows):
    """What the card's time went to, measured kernel by kernel, which adds a microsecond or two to each and lets none overlap."""
    return "\n\n".join(filter(None, map(kernels_of, rows)))


def kernels_of(row):
    kernels = sorted((row.get("gpu") or {}).get("kernels", []), key=lambda k: -k["device_s"])[:KERNELS_SHOWN]
    if not kernels:
        return ""
    lines = [f"| work (mid, {row['what']}, profiled) | count | us each | s | host, us each |", "|---|---|---|---|---|"]
    for k in kernels:
        count = max(1, k["count"])
        lines.append(f"| {k['name']} | {k['count']} | {1e6 * k['device_s'] / count:.2f} | {k['device_s']:.3f} | "
                     f"{1e6 * k['host_s'] / count:.2f} |")
    return "\n".join(lines)


def wrong_list(rows):
    wrong = [row for row in rows if not row.get("refused") and not row["ok"]]
    lines = [f"- {row['model']} at {row['vram']}: {row['what']} {row.get('settings', '')}: {row['wrong']}" for row in wrong]
    shown = lines[:20] + ([f"- and {len(lines) - 20} more"] if len(lines) > 20 else [])
    return "\n".join(["Wrong:", ""] + shown) if wrong else ""


def refused_line(rows):
    refused = [f"{row['model']} at {row['vram']}" for row in rows if row.get("refused")]
    return f"Refused as too small a --vram, as it should be: {', '.join(refused)}." if refused else ""
