"""One engine, one model, one process: tokens per second of prompts and of generation, as a line of JSON.

    worker.py ENGINE MODEL --threads 2 --prompt 512 --generate 64 --depth 0 --kv f16

ENGINE is `llama.cpp`, `ik_llama.cpp` or `transformers`; MODEL a GGUF file, or a folder for transformers. Every
figure comes after an uncounted run. Only the forward passes are inside the timer, as in llama-bench.
"""

import argparse
import contextlib
import json
import os
import sys
import time


def ids(n):
    return [3 + (7919 * i) % 29000 for i in range(n)]


class Llama:
    """llama.cpp and its fork ik_llama.cpp, through the C functions that their packages bind."""

    def __init__(self, engine, model, threads, context, kv):
        self.fork = engine == "ik_llama.cpp"
        if self.fork:
            import ik_llama_cpp._ctypes_api as api
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
        self.position = 0

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


class Transformers:
    """transformers on torch, with the weights in bf16."""

    def __init__(self, model, threads):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)

    def clear(self):
        self.cache = None

    def forward(self, tokens):
        with self.torch.inference_mode():
            out = self.model(self.torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            self.cache = out.past_key_values


@contextlib.contextmanager
def quiet():
    """What C code prints goes nowhere."""
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--kv", default="f16")
    a = parser.parse_args()
    context = a.depth + max(a.prompt, a.generate) + 64
    with quiet():
        start = time.perf_counter()
        if a.engine == "transformers":
            engine = Transformers(a.model, a.threads)
        else:
            engine = Llama(a.engine, a.model, a.threads, context, a.kv)
        result = {"engine": a.engine, "load_s": time.perf_counter() - start}
        engine.clear()
        engine.forward(ids(32))
        engine.forward([5])
        if a.prompt:
            engine.clear()
            engine.forward(ids(a.depth))
            start = time.perf_counter()
            engine.forward(ids(a.prompt))
            result["prompt_t_s"] = a.prompt / (time.perf_counter() - start)
        if a.generate:
            engine.clear()
            engine.forward(ids(max(a.depth, 1)))
            start = time.perf_counter()
            for token in ids(a.generate):
                engine.forward([token])
            result["generate_t_s"] = a.generate / (time.perf_counter() - start)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
