#!/usr/bin/env python3
"""The kernels' microbenchmark as a table, against what the machine can do.

cargo bench -p drafthorse-runtime --bench kernels | tee bench.txt; scripts/kernel_table.py bench.txt > eval/results/kernels.md

Owns the reading of divan's tree: a name with times, then a line of bytes and one of items a second, columns
fastest, slowest, median, mean. Rates here are of the median; "of read" and "of peak" compare with the
`machine` benchmarks on as many threads.
"""
import datetime, platform, re, sys

UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}

def columns(text):
    return [column.strip() for column in re.split("[│|]", text)]

def rate(text, unit):
    found = re.match(r"([\d.]+) ([KMGT]?)" + unit + r"/s$", text)
    return float(found[1]) * UNITS[found[2]] if found else None

def read(lines):
    """{name: {"time": text, "bytes": rate, "items": rate}}, names with their group in front."""
    results, group, name = {}, "", None
    for line in lines:
        found = re.match(r"^([ │]*)[├╰]─ (.*)$", line.rstrip("\n"))
        if found:
            parts = columns(found[2])
            head = re.match(r"(.*?) {2,}([\d.]+ [nµm]?s)$", parts[0])
            if not head:
                group = parts[0]
                continue
            name = f"{group} {head[1].strip()}"
            results[name] = {"time": parts[2]}
            continue
        cells = columns(line)
        cells = [cell for cell in cells if cell]
        for kind, unit in (("bytes", "B"), ("items", "item")):
            if name and len(cells) >= 3 and (value := rate(cells[2], unit)):
                results[name][kind] = value
    return results

def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        results = read(file)
    ceiling = {threads: (results[f"read {threads}"]["bytes"], results[f"multiply_add {threads}"]["items"])
               for threads in ("1", "2")}
    print(f"{datetime.date.today()}, {platform.processor() or platform.machine()}; `cargo bench -p drafthorse-runtime "
          "--bench kernels`, medians. Machine: " + "; ".join(
              f"{threads} thread{'s' * (threads > '1')} read {r / 1e9:.1f} GB/s, multiply-add of 8-bit numbers "
              f"{2 * p / 1e9:.0f} GFLOP/s" for threads, (r, p) in ceiling.items()) + ".\n")
    print("| case | time | GB/s of weights | of read | GFLOP/s | of peak |\n|---|---|---|---|---|---|")
    for name, found in results.items():
        if "rows=" not in name:
            continue
        top = ceiling[re.search(r"threads=(\d)", name)[1]]
        flops = 2 * found["items"]
        bandwidth = found.get("bytes")
        read_part = f"{bandwidth / 1e9:.2f} | {bandwidth / top[0]:.0%}" if bandwidth else "- | -"
        print(f"| {name.split(' ', 1)[1]} | {found['time']} | {read_part} | {flops / 1e9:.1f} | {flops / 2 / top[1]:.0%} |")

main()
