"""tramontane beside other engines: the same weights and threads, in turn, several rounds; medians and ratios.

    python3 benches/peers/run.py --scratch /tmp/peers --shape 1.3b --formats q4 --tests pp512,tg32,tg32@4096

Installs the peers from PyPI into the scratch folder (llama.cpp is compiled there for this machine: a C++ compiler and
a quarter of an hour, once), makes a seeded random checkpoint of a real shape, writes it as GGUF, quantises that with
llama.cpp's own tool, and builds our side. Then all engines load the model, each in a process of its own, and are asked
for one test after the other, in turn: a machine that is faster at times is so for all of them. A ratio is the median of
the rounds' ratios. Leave the machine alone meanwhile.
"""

import argparse
import glob
import json
import os
import re
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

# The checkpoints that are made where they are not there:
# hidden, layers, heads, key/value heads, inner width, vocabulary
SHAPES = {
    "135m": (576, 30, 9, 3, 1536, 49152),  # SmolLM2
    "350m": (1024, 24, 16, 4, 2816, 32000),
    "1.3b": (2048, 24, 16, 16, 5504, 32000),  # CroissantLLM
    "7b": (4096, 32, 32, 8, 14336, 32000),  # Mistral 7B
}

ENGINES = [*PACKAGES, "candle"]


def engines(text):
    """Names of engines, with commas between; `none` for ours alone."""
    if text == "none":
        return []
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
        # GCC 12 takes the shapes of the tiles in llama.cpp's AMX code for stores that nobody reads, and leaves them out: then it crashes.
        env = dict(os.environ, CXXFLAGS=os.environ.get("CXXFLAGS", "") + " -fno-tree-dse -fno-dse")
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[engine]], check=True, env=env)
        open(f"{folder}/ready", "w").close()
    return python


def ggufs(a, fmt):
    """The GGUF formats to compare one of ours with."""
    return a.ggufs or FORMATS[fmt]


def prepare(a):
    """The folder of the checkpoint; beside it lie its GGUF files, with the same name and that of the format."""
    python = python_of("ik_llama.cpp", a.scratch)
    folder = f"{a.scratch}/{a.shape}"
    if a.shape not in SHAPES:
        return folder
    code = (
        f"import sys; sys.path.insert(0, {HERE!r}); import checkpoint as c;"
        f"c.write_safetensors({folder!r}, {SHAPES[a.shape]!r}); c.write_gguf({folder!r}, {folder + '-bf16.gguf'!r})"
    )
    subprocess.run([python, "-c", code], check=True)
    tool = glob.glob(f"{a.scratch}/ik_llama.cpp/lib/python*/site-packages/ik_llama_cpp/bin/llama-quantize")[0]
    for name in sum((ggufs(a, f) for f in a.formats), []):
        path = f"{folder}-{name}.gguf"
        if not os.path.exists(path):
            body, _, head = name.partition("+")
            # The tool knows types by their small letters, and passes over what it does not know.
            options = ["--output-tensor-type", head.lower()] if head else ["--pure"]
            command = [tool, *options, f"{folder}-bf16.gguf", path + ".part", body, str(max(a.threads))]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            os.replace(path + ".part", path)
    return folder


def ours():
    """Our side of the comparison, built."""
    command = ["cargo", "bench", "-q", "--bench", "peer", "--no-run", "--message-format", "json"]
    out = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    records = [json.loads(line) for line in out.splitlines()]
    return next(r["executable"] for r in records if r.get("target", {}).get("name") == "peer")


def candle(a):
    """The small program beside this file, built: candle-transformers' Llama."""
    target = f"{a.scratch}/candle-target"
    command = ["cargo", "build", "-q", "--release", "--manifest-path", f"{HERE}/candle/Cargo.toml", "--target-dir", target]
    subprocess.run(command, check=True)
    return f"{target}/release/peer-candle"


class Engine:
    """A process that has loaded the model and answers tests: see worker.py."""

    def __init__(self, threads, command):
        env = dict(os.environ, RAYON_NUM_THREADS=str(threads))
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([str(word) for word in command], env=env, **pipes)
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            self.fail()
        return json.loads(line)

    def ask(self, **test):
        try:
            self.process.stdin.write(json.dumps(test) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.fail()
        return self.read()

    def fail(self):
        sys.exit(f"{self.process.args} ended: {self.process.wait()}")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def engines_for(a, folder, fmt, threads, context):
    """The engines that can take a format, each with the name of what it makes of it; ours first."""
    started = {("tramontane", fmt): Engine(threads, [a.ours, folder, fmt, a.kv, threads])}
    for engine in a.engines:
        if engine == "candle":
            if fmt == "bf16":
                started[engine, "f32"] = Engine(threads, [candle(a), folder, "f32"])
            continue
        worker = [python_of(engine, a.scratch), f"{HERE}/worker.py", engine]
        options = ["--threads", threads, "--context", context, "--kv", a.kv]
        if engine in ("llama.cpp", "ik_llama.cpp"):
            for name in ggufs(a, fmt):
                started[engine, name] = Engine(threads, [*worker, f"{folder}-{name}.gguf", *options])
        elif engine == "mistral.rs":
            more = ["--quantization", IN_SITU[fmt]] if IN_SITU[fmt] else []
            started[engine, IN_SITU[fmt] or fmt] = Engine(threads, [*worker, folder, *options, *more])
        elif engine == "transformers" and fmt == "bf16":
            started[engine, "bf16"] = Engine(threads, [*worker, folder, *options])
    return started


def test_of(text):
    """`pp512`, `tg32` or `tg32@4096` as the fields of a test."""
    match = re.fullmatch(r"(pp|tg)(\d+)(?:@(\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: expected pp512 or tg32, with a depth pp512@4096")
    kind, n, depth = match[1], int(match[2]), int(match[3] or 0)
    return {"name": text, "prompt": n if kind == "pp" else 0, "generate": 0 if kind == "pp" else n, "depth": depth}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", required=True, help="where environments and checkpoints are kept")
    parser.add_argument("--shape", default="1.3b", help=f"{', '.join(SHAPES)}, or what has its folder in the scratch folder")
    parser.add_argument("--formats", default="q4,q8,bf16", type=lambda text: text.split(","))
    parser.add_argument("--ggufs", default=[], type=lambda text: text.split(","), help="only these of the GGUF formats; Q4_0+Q6_K is Q4_0 with a head in Q6_K")
    parser.add_argument("--engines", default="llama.cpp,ik_llama.cpp", type=engines, help=", ".join(ENGINES))
    parser.add_argument("--threads", type=int, default=[2], nargs="+")
    parser.add_argument("--tests", default="pp512,tg32", type=lambda text: [test_of(t) for t in text.split(",")])
    parser.add_argument("--kv", default="f16", choices=["f16", "q8"])
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    a.ours = ours()
    context = max(t["depth"] + max(t["prompt"], t["generate"]) for t in a.tests) + 64
    folder = prepare(a)
    for fmt in a.formats:
        for threads in a.threads:
            started = engines_for(a, folder, fmt, threads, context)
            print(f"\n{a.shape} {fmt}, {threads} threads, {a.kv} cache, {a.rounds} rounds; t/s (ours : theirs)")
            table(a.tests, started, a.rounds)
            for engine in started.values():
                engine.end()


def measure(test, started, rounds):
    """The speeds of each engine, one for each round, and what share of the machine's ceiling ours are."""
    test = dict(test)
    name = test.pop("name")
    speeds, shares = {key: [] for key in started}, []
    own = next(iter(started.values()))
    for i in range(rounds):
        for key, engine in started.items():
            before = own.ask(ceilings=True) if engine is own else None
            answer = engine.ask(**test)
            speeds[key].append(answer["t_s"])
            if engine is own:
                after = own.ask(ceilings=True)
                shares.append(share(test, answer, before, after))
            print(f"{name}, round {i + 1} of {rounds}: {key[0]} {key[1]} {answer['t_s']:.1f}", file=sys.stderr)
    return speeds, shares


def share(test, answer, before, after):
    """How near a speed is to the ceiling: for tokens the memory's bandwidth, for prompts f32 multiply-adds."""
    if test["prompt"]:
        return answer["t_s"] * 2 * answer["parameters_per_token"] / max(before["flops"], after["flops"])
    return answer["t_s"] * answer["bytes_per_token"] * 2 / (before["bandwidth"] + after["bandwidth"])


def table(tests, started, rounds):
    """Medians of each engine, and how many times faster we are: the median of the rounds' ratios."""
    columns = [measure(test, started, rounds) for test in tests]
    print("| | " + " | ".join(test["name"] for test in tests) + " |")
    print("|---|" + "--:|" * len(tests))
    own = next(iter(started))
    for key in started:
        cells = []
        for speeds, shares in columns:
            cell = f"{statistics.median(speeds[key]):.1f}"
            if key == own:
                cell += f" ({100 * statistics.median(shares):.0f} % of the ceiling)"
            else:
                ratios = [mine / theirs for mine, theirs in zip(speeds[own], speeds[key])]
                cell += f" ({statistics.median(ratios):.2f})"
            cells.append(cell)
        print(f"| {key[0]} {key[1]} | " + " | ".join(cells) + " |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
