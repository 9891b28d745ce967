"""tramontane beside other engines: the same weights and threads, in turn, several rounds; medians and ratios.

    python3 benches/peers/run.py --scratch /tmp/peers --shape 1.3b --rounds 5

Installs the peers from PyPI into the scratch folder (llama.cpp is compiled there for this machine: a C++ compiler and
a quarter of an hour, once), makes a seeded random checkpoint of a real shape, writes it as GGUF, quantises that with
llama.cpp's own tool, and runs every engine in a process of its own, one after the other, again and again. Build
tramontane first: cargo build --release. Leave the machine alone meanwhile.
"""

import argparse
import glob
import json
import os
import statistics
import subprocess
import sys
import venv

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
# Our format, and what the GGUF engines call the nearest of theirs.
FORMATS = {"q4": ["Q4_0", "Q4_K_S"], "q8": ["Q8_0"], "bf16": ["bf16"]}
PACKAGES = {
    "ik_llama.cpp": ["ik-llama-cpp-python", "gguf", "numpy"],
    "llama.cpp": ["llama-cpp-python"],
    "transformers": ["transformers", "torch"],
    "mistral.rs": ["mistralrs"],
}
# What mistral.rs calls its format that is nearest to ours.
IN_SITU = {"q4": "q4k", "q8": "q8_0", "bf16": None}


ENGINES = [*PACKAGES, "candle"]


def engines(text):
    """Names of engines, with commas between."""
    unknown = [name for name in text.split(",") if name not in ENGINES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(ENGINES)}")
    return text.split(",")


def python_of(engine, scratch):
    """The interpreter of an environment that holds the engine; it is made where it is not there."""
    folder = f"{scratch}/{engine}"
    python = f"{folder}/bin/python"
    if not os.path.exists(f"{folder}/ready"):
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[engine]], check=True)
        open(f"{folder}/ready", "w").close()
    return python


def prepare(a):
    """The checkpoint and its GGUF files."""
    python = python_of("ik_llama.cpp", a.scratch)
    folder = f"{a.scratch}/{a.shape}"
    code = (
        f"import sys; sys.path.insert(0, {HERE!r}); import checkpoint as c;"
        f"c.write_safetensors({folder!r}, c.SHAPES[{a.shape!r}]); c.write_gguf({folder!r}, {folder + '-bf16.gguf'!r})"
    )
    subprocess.run([python, "-c", code], check=True)
    tool = glob.glob(f"{a.scratch}/ik_llama.cpp/lib/python*/site-packages/ik_llama_cpp/bin/llama-quantize")[0]
    for name in sum((FORMATS[f] for f in a.formats), []):
        path = f"{folder}-{name}.gguf"
        if not os.path.exists(path):
            command = [tool, "--pure", f"{folder}-bf16.gguf", path + ".part", name, str(a.threads)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            os.replace(path + ".part", path)
    return folder


def ours(a, folder, fmt):
    """Tokens per second of prompt and generation, by the program's own bench."""
    command = [a.tramontane, "bench", "-m", folder, "-t", str(a.threads), "--format", fmt, "--kv", a.kv, "-r", "1"]
    command += ["-p", str(a.prompt), "-n", str(a.generate), "-d", str(a.depth), "--device", "cpu", "-o", "json"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    records = json.loads(out)
    speed = lambda key: next((r["avg_ts"] for r in records if r[key]), None)
    return speed("n_prompt"), speed("n_gen")


def theirs(a, engine, path, *more):
    command = [python_of(engine, a.scratch), f"{HERE}/worker.py", engine, path, "--threads", str(a.threads)]
    command += ["--prompt", str(a.prompt), "--generate", str(a.generate), "--depth", str(a.depth), "--kv", a.kv, *more]
    env = dict(os.environ, RAYON_NUM_THREADS=str(a.threads))
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    record = json.loads(out.strip().splitlines()[-1])
    return record.get("prompt_t_s"), record.get("generate_t_s")


def candle(a, folder):
    """candle-transformers' Llama, by the small program beside this file."""
    manifest = f"{HERE}/candle/Cargo.toml"
    target = f"{a.scratch}/candle-target"
    build = ["cargo", "build", "-q", "--release", "--manifest-path", manifest, "--target-dir", target]
    subprocess.run(build, check=True)
    program = f"{target}/release/peer-candle"
    command = [program, folder, "f32", str(a.prompt), str(a.generate)]
    env = dict(os.environ, RAYON_NUM_THREADS=str(a.threads))
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    record = json.loads(out.strip().splitlines()[-1])
    return record["prefill_tok_s"], record["decode_tok_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", required=True, help="where environments and checkpoints are kept")
    parser.add_argument("--shape", default="1.3b", choices=["350m", "1.3b", "7b"])
    parser.add_argument("--formats", default="q4,q8,bf16", type=lambda text: text.split(","))
    parser.add_argument("--engines", default="llama.cpp,ik_llama.cpp", type=engines, help=", ".join(ENGINES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--kv", default="f16", choices=["f16", "q8"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tramontane", default=f"{ROOT}/target/release/tramontane")
    a = parser.parse_args()
    folder = prepare(a)

    for fmt in a.formats:
        runs = {("tramontane", fmt): lambda fmt=fmt: ours(a, folder, fmt)}
        for engine in a.engines:
            if engine in ("llama.cpp", "ik_llama.cpp"):
                for name in FORMATS[fmt]:
                    path = f"{folder}-{name}.gguf"
                    runs[engine, name] = lambda engine=engine, path=path: theirs(a, engine, path)
            elif engine == "mistral.rs":
                more = ["--quantization", IN_SITU[fmt]] if IN_SITU[fmt] else []
                runs[engine, IN_SITU[fmt] or fmt] = lambda more=more: theirs(a, "mistral.rs", folder, *more)
            elif engine == "transformers" and fmt == "bf16":
                runs[engine, "bf16"] = lambda: theirs(a, "transformers", folder)
            elif engine == "candle" and fmt == "bf16":
                runs[engine, "f32"] = lambda: candle(a, folder)
        table(fmt, measure(runs, a.rounds))


def measure(runs, rounds):
    """The results of each engine, all engines in turn in each round."""
    results = {key: [] for key in runs}
    for i in range(rounds):
        for key, run in runs.items():
            results[key].append(run())
            print(f"round {i + 1} of {rounds}: {key[0]} {key[1]} {results[key][-1]}", file=sys.stderr)
    return results


def table(fmt, results):
    """Medians, and how many times faster we are."""
    def median(values):
        values = [v for v in values if v is not None]
        return statistics.median(values) if values else None

    medians = {key: [median(column) for column in zip(*rows)] for key, rows in results.items()}
    own = medians["tramontane", fmt]
    show = lambda v: "–" if v is None else f"{v:.1f}"
    print(f"\n| {fmt} | prompt t/s | ours : theirs | generation t/s | ours : theirs |\n|---|--:|--:|--:|--:|")
    for (engine, name), row in medians.items():
        ratio = ["–" if a is None or b is None else f"{b / a:.2f}" for a, b in zip(row, own)]
        print(f"| {engine} {name} | {show(row[0])} | {ratio[0]} | {show(row[1])} | {ratio[1]} |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
