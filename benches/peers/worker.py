"""One engine, one model, one process, for as many tests as are asked for: tokens per second of prompts and of tokens.

    worker.py ENGINE MODEL --threads 2 --context 4352 --kv f16

ENGINE is `llama.cpp`, `ik_llama.cpp`, `transformers` or `mistral.rs`; MODEL a GGUF file, or a folder for the last two.
Once the model is loaded, how long that took goes to stdout; then each line of stdin is a test, such as
`{"prompt": 512, "generate": 0, "depth": 0}`, and is answered with its speed. All lines are JSON, as in `ours.rs`, and an
engine that has no work sleeps, so several can wait side by side and be asked in turn.

Only the forward passes are inside the timer, as in llama-bench; mistral.rs can only be asked for texts, and its figures
are those that it reports itself.
"""

import argparse
import contextlib
import ctypes
import json
import os
import sys
import tempfile
import time


def ids(n):
    return [3 + (7919 * i) % 29000 for i in range(n)]


class Forward:
    """An engine that is given tokens: `forward` takes some more, `truncate` forgets those from a place on."""

    position = 0

    def warm_up(self):
        self.forward(ids(32))
        self.forward([5])

    def measure(self, prompt, generate, depth):
        # What a test at a depth needs in the cache stays there for the next one.
        if 0 < depth <= self.position and self.truncate(depth):
            self.position = depth
        else:
            self.clear()
            self.position = 0
            self.forward(ids(depth))
        start = time.perf_counter()
        if prompt:
            self.forward(ids(prompt))
        else:
            for token in ids(generate):
                self.forward([token])
        return max(prompt, generate) / (time.perf_counter() - start)


class Llama(Forward):
    """llama.cpp and its fork ik_llama.cpp, through the C functions that their packages bind."""

    def __init__(self, engine, model, threads, context, kv):
        self.fork = engine == "ik_llama.cpp"
        if self.fork:
            import ik_llama_cpp._ctypes_api as api

            # Its package does not bind this function.
            self.remove = api._lib.llama_kv_cache_seq_rm
            self.remove.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
            self.remove.restype = ctypes.c_bool
        else:
            import llama_cpp.llama_cpp as api
        self.api = api
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        if self.fork:
            # What its authors recommend for speed: interleaved rows and huge pages, made at load.
            params.use_mmap, params.repack_tensors, params.use_thp = False, True, True
        self.model = api.llama_model_load_from_file(model.encode(), params)
        if not self.model:
            sys.exit(f"{engine} cannot load {model}")
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = threads
        if kv == "q8":
            params.type_k = params.type_v = 8  # GGML_TYPE_Q8_0
        if hasattr(params, "flash_attn_type"):
            params.flash_attn_type = 1 if kv == "q8" else -1
        elif self.fork:
            # Its flash attention needs VNNI; without it long prompts end in an assertion.
            params.flash_attn = kv == "q8"
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"{engine} cannot make a context")
        self.batch = api.llama_batch_init(512, 0, 1)

    def clear(self):
        if self.fork:
            self.api.llama_kv_cache_clear(self.context)
        else:
            self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)

    def truncate(self, depth):
        if self.fork:
            done = self.remove(self.context, 0, depth, -1)
        else:
            done = self.api.llama_memory_seq_rm(self.api.llama_get_memory(self.context), 0, depth, -1)
        return done

    def forward(self, tokens):
        batch = self.batch
        for start in range(0, len(tokens), 512):
            part = tokens[start : start + 512]
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i] = token, self.position + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = i + 1 == len(part)
            if self.api.llama_decode(self.context, batch) != 0:
                sys.exit("llama_decode failed")
            self.position += len(part)


class Transformers(Forward):
    """transformers on torch, with the weights in bf16."""

    def __init__(self, model, threads):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)

        self.cache = None

    def clear(self):
        self.cache = None

    def truncate(self, depth):
        self.cache.crop(depth)
        return True

    def forward(self, tokens):
        if not tokens:
            return
        self.position += len(tokens)
        with self.torch.inference_mode():
            out = self.model(self.torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            self.cache = out.past_key_values


class MistralRs:
    """mistral.rs, which packs the weights at load and counts its tokens itself."""

    def __init__(self, model, quantization):
        import mistralrs

        # Of its words and their ids each is the other's name: a prompt has the length that it should have.
        words = {f"w{i}": i for i in range(json.load(open(f"{model}/config.json"))["vocab_size"])}
        spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
        tokenizer = {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
            "decoder": {"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        }
        self.folder = tempfile.TemporaryDirectory()
        folder = self.folder.name
        for name in os.listdir(model):
            os.symlink(os.path.abspath(f"{model}/{name}"), f"{folder}/{name}")
        json.dump(tokenizer, open(f"{folder}/tokenizer.json", "w"))
        special = {"bos_token": "w1", "eos_token": "w2", "unk_token": "w0"}
        json.dump(special, open(f"{folder}/tokenizer_config.json", "w"))
        which = mistralrs.Which.Plain(model_id=folder, arch=mistralrs.Architecture.Llama)
        self.request = mistralrs.CompletionRequest
        self.runner = mistralrs.Runner(which=which, in_situ_quant=quantization, prefix_cache_n=0, no_paged_attn=True)

    def run(self, n_prompt, n_generate):
        prompt = " ".join(f"w{i}" for i in ids(n_prompt))
        request = self.request(prompt=prompt, model="peer", max_tokens=n_generate, temperature=0.0)
        return self.runner.send_completion_request(request).usage

    def warm_up(self):
        self.run(32, 2)

    def measure(self, prompt, generate, depth):
        if prompt:
            return self.run(prompt, 1).avg_prompt_tok_per_sec
        return self.run(max(depth, 1), generate + 1).avg_compl_tok_per_sec


@contextlib.contextmanager
def quiet():
    """What an engine prints goes nowhere; gives a file for the answers, which goes to stdout."""
    sys.stdout.flush()
    saved, nothing = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
    try:
        yield open(saved[0], "w", buffering=1)
    finally:
        os.dup2(saved[1], 2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--quantization", help="of mistral.rs: q4k, q8_0, or none")
    a = parser.parse_args()
    with quiet() as answers:
        start = time.perf_counter()
        if a.engine == "transformers":
            engine = Transformers(a.model, a.threads)
        elif a.engine == "mistral.rs":
            engine = MistralRs(a.model, a.quantization)
        else:
            engine = Llama(a.engine, a.model, a.threads, a.context, a.kv)
        print(json.dumps({"load_s": time.perf_counter() - start}), file=answers)
        engine.warm_up()
        for line in sys.stdin:
            print(json.dumps({"t_s": engine.measure(**json.loads(line))}), file=answers)


if __name__ == "__main__":
    main()
