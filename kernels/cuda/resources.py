"""Registers, spills, shared memory and occupancy of each kernel on each generation of GPUs, as a Markdown table.

Usage: resources.py PTXAS FILE.ptx ...   Exits with 1 where a kernel spills registers to memory.
"""

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

# Threads, shared memory (KiB) and blocks of one multiprocessor; registers are 65536 everywhere.
CHIPS = {
    "sm_80": (2048, 164, 32),
    "sm_86": (1536, 100, 16),
    "sm_89": (1536, 100, 24),
    "sm_90": (2048, 228, 32),
    "sm_100": (2048, 228, 32),
    "sm_120": (1536, 100, 24),
}


def dynamic_shared(name):
    """Dynamic shared memory of a launch in bytes, at its largest; the same sums as in mod.rs."""
    prefill = re.fullmatch(r"attend_prefill_\w+?_(\d+)(?:_(\d+))?", name)
    if prefill:
        dim, v_dim = int(prefill[1]), int(prefill[2] or prefill[1])
        if "_q8_" in name:
            return (16 if v_dim > 128 else 64) * (3 * (dim + v_dim) + 32 + 4 * ((dim + 31) // 32 + 1))
        return 4 * (32 if v_dim > 128 else 64) * (dim + v_dim + 16)
    decode = re.fullmatch(r"attend_decode_\w+?_(\d+)", name)
    if decode:
        heads, dim = int(decode[1]), 128
        return 4 * heads * (dim + 256 + 128 * 8)
    if name == "route":
        return 20 * 256
    packed = re.fullmatch(r"(?:experts_)?gemm_(q[48])", name)
    if packed:
        return 2 * (64 * 160 + 8 * 1088) if packed[1] == "q8" else 2 * (64 * 192 + 8 * 576)
    return 3 * (64 + 128) * 80 if re.fullmatch(r"(experts_)?gemm_b?f16", name) else 0


def measure(ptxas, chip, path):
    cubin = tempfile.NamedTemporaryFile(suffix=".cubin")
    run = [ptxas, f"-arch={chip}", "-v", "-o", cubin.name, path]
    text = subprocess.run(run, check=True, capture_output=True, text=True).stderr
    pattern = r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers(.*?)\n"
    for name, stores, loads, registers, rest in re.findall(pattern, text, re.S):
        static = re.search(r"(\d+) bytes smem", rest)
        yield name, int(registers), int(stores) + int(loads), int(static[1]) if static else 0


def occupancy(chip, threads, registers, shared):
    """Resident warps as a share of the most that the chip can hold, in percent."""
    most_threads, shared_kib, most_blocks = CHIPS[chip]
    warps = (threads + 31) // 32
    by_registers = 65536 // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = shared_kib * 1024 // (shared + 1024)
    blocks = min(by_registers, by_shared, most_threads // threads, most_blocks)
    return round(100 * blocks * warps * 32 / most_threads)


def threads_of(path):
    text = open(path).read()
    found = re.findall(r"\.entry (\w+)\([^)]*\)\s*(?:\.maxntid (\d+))?", text)
    return {name: int(threads or 256) for name, threads in found}


def main():
    ptxas, files = sys.argv[1], sys.argv[2:]
    jobs = [(chip, path) for chip in CHIPS for path in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda job: list(measure(ptxas, *job)), jobs)
    threads = {k: v for path in files for k, v in threads_of(path).items()}
    table, spills = {}, 0
    for (chip, _), rows in zip(jobs, results):
        for name, registers, spilled, static in rows:
            spills += spilled
            if spilled:
                print(f"{name} spills {spilled} bytes of registers on {chip}", file=sys.stderr)
            shared = static + dynamic_shared(name)
            share = occupancy(chip, threads[name], registers, shared)
            cell = f"{registers} / {share} %" + (f" ({spilled} spilled)" if spilled else "")
            table.setdefault(name, {"shared": shared})[chip] = cell
    print("# Resources of the CUDA kernels\n")
    print("Written by `build.sh`: registers of a thread / resident warps as a share of what the chip can hold.")
    print("Shared memory in bytes, static and dynamic, decode at a head width of 128, route of 256 experts. No kernel spills registers.\n")
    print("| kernel | threads | shared | " + " | ".join(CHIPS) + " |")
    print("|---|--:|--:|" + "--:|" * len(CHIPS))
    for name in sorted(table):
        cells = " | ".join(table[name][chip] for chip in CHIPS)
        print(f"| {name} | {threads[name]} | {table[name]['shared']} | {cells} |")
    sys.exit(spills > 0)


main()
