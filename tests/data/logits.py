"""Writes the folders of `tests/data/logits` that were added to the first 43: `python3 tests/data/logits.py FOLDER`.

Tiny models with seeded random weights, run by Hugging Face transformers (eager, CPU, float32). A prompt is drawn anew
until each greedy step has a margin that no rounding can flip.
"""

import json
import os
import sys
import zlib

import torch
import transformers
from safetensors.torch import save_file
from transformers import FalconConfig, FalconForCausalLM, Mamba2Config, Mamba2ForCausalLM

VOCAB = 256
MARGIN = 0.0107
INFINITY = float("inf")


def mamba2(**changes):
    """Mamba-Codestral's configuration, in small."""
    config = dict(
        architectures=["Mamba2ForCausalLM"], bos_token_id=0, chunk_size=16, conv_kernel=4, eos_token_id=2, expand=2,
        head_dim=8, hidden_act="silu", hidden_size=64, initializer_range=0.1, intermediate_size=128,
        layer_norm_epsilon=1e-5,
        model_type="mamba2", n_groups=4, norm_before_gate=True, num_heads=16, num_hidden_layers=3, pad_token_id=0,
        rescale_prenorm_residual=False, residual_in_fp32=True, rms_norm=True, state_size=16, tie_word_embeddings=False,
        time_step_floor=0.0001, time_step_init_scheme="random", time_step_limit=[0.0, INFINITY], time_step_max=0.1,
        time_step_min=0.001, time_step_rank=4, time_step_scale=1.0, torch_dtype="float32", use_bias=False,
        use_cache=True, use_conv_bias=True, vocab_size=VOCAB,
    )  # fmt: skip
    config.update(changes)
    # What the class does not read; the real file has it.
    unknown = (
        "architectures", "intermediate_size", "norm_before_gate", "rms_norm", "time_step_init_scheme",
        "time_step_scale", "torch_dtype",
    )  # fmt: skip
    known = {key: value for key, value in config.items() if key not in unknown}
    return config, Mamba2ForCausalLM(Mamba2Config(**known))


def falcon(**changes):
    """The configuration of the first Falcons on the hub, whose code came with them."""
    config = dict(
        alibi=False, apply_residual_connection_post_layernorm=False, architectures=["RWForCausalLM"],
        attention_dropout=0.0, bias=False, bos_token_id=11, eos_token_id=11, hidden_dropout=0.0, hidden_size=64,
        initializer_range=0.02, layer_norm_epsilon=1e-5, n_head=4, n_layer=2, torch_dtype="float32", use_cache=True,
        vocab_size=VOCAB,
    )  # fmt: skip
    config.update(changes)
    grouped = "n_head_kv" in config
    model = FalconForCausalLM(
        FalconConfig(
            vocab_size=VOCAB, hidden_size=config["hidden_size"], num_hidden_layers=config["n_layer"],
            num_attention_heads=config["n_head"], num_kv_heads=config.get("n_head_kv"),
            layer_norm_epsilon=config["layer_norm_epsilon"], bias=config["bias"], alibi=config["alibi"],
            multi_query=config.get("multi_query", False), parallel_attn=config.get("parallel_attn", True),
            new_decoder_architecture=grouped, bos_token_id=11, eos_token_id=11, attn_implementation="eager",
        )  # fmt: skip
    )
    return config, model


MODELS = {
    "mamba2": (mamba2, {}),
    "mamba2_one_group": (
        mamba2,
        dict(n_groups=1, use_bias=True, use_conv_bias=False, tie_word_embeddings=True),
    ),
    "rw_7b": (falcon, dict(model_type="RefinedWebModel", multi_query=True, parallel_attn=True)),
    "rw_40b": (falcon, dict(model_type="RefinedWeb", n_head_kv=2, parallel_attn=True)),
}


def randomise(model):
    """Weights large enough that every part matters. Decays and time steps stay where the class puts them."""
    for name, p in model.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            continue
        if "norm" in name or "ln_" in name or "layernorm" in name or name.endswith(".D"):
            p.data = (0.0 if name.endswith("bias") else 1.0) + 0.2 * torch.randn_like(p)
        elif "embed" in name:
            p.data = torch.randn_like(p) * (0.3 if model.config.tie_word_embeddings else 1.0)
        elif p.dim() == 1:
            p.data = 0.1 * torch.randn_like(p)
        else:
            fan_in = p.shape[-1] if p.dim() == 2 else p[0].numel()
            # A tied head would otherwise repeat the last token for ever.
            scale = 3.0 if model.config.tie_word_embeddings else 1.5 if "lm_head" in name else 1.0
            p.data = torch.randn_like(p) * scale / fan_in**0.5


@torch.no_grad()
def greedy(model, ids, n):
    """Ids, their margins and logits, step by step with the cache; the end token is never taken."""
    out = model(ids[None], use_cache=True)
    picked, margins, rows = [], [], []
    for _ in range(n):
        row = out.logits[0, -1].clone()
        rows.append(row.clone())
        row[model.config.eos_token_id] = -INFINITY
        best = row.topk(2)
        picked.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        if rows[-1].argmax() != picked[-1]:
            return None
        name = "cache_params" if hasattr(out, "cache_params") else "past_key_values"
        cache = {name: getattr(out, name)}
        out = model(torch.tensor([[picked[-1]]]), use_cache=True, **cache)
    return torch.tensor(picked), torch.tensor(margins), torch.stack(rows)


@torch.no_grad()
def prompt(model, length, n, attempts=200):
    for attempt in range(1, attempts + 1):
        ids = torch.randint(3, VOCAB, (length,))
        found = greedy(model, ids, n)
        if found is not None and float(found[1].min()) > MARGIN and len(set(found[0].tolist())) > n // 2:
            return ids, found, attempt
    raise SystemExit("no prompt has the margin")


@torch.no_grad()
def write(name, folder):
    make, changes = MODELS[name]
    seed = zlib.crc32(name.encode())
    torch.manual_seed(seed)
    config, model = make(**changes)
    model = model.eval()
    randomise(model)
    model.tie_weights()
    os.makedirs(folder, exist_ok=True)
    model.save_pretrained(folder)
    os.rename(f"{folder}/config.json", f"{folder}/config.v5.json")
    if os.path.exists(f"{folder}/generation_config.json"):
        os.remove(f"{folder}/generation_config.json")
    with open(f"{folder}/config.json", "w") as f:
        json.dump(config, f, indent=2)
    expected, facts = {}, []
    for k, (length, n) in enumerate([(38, 20), (24, 20)]):
        ids, (picked, margins, rows), attempt = prompt(model, length, n)
        logits = model(ids[None]).logits[0]
        whole = model(torch.cat([ids, picked])[None]).logits[0, length - 1 : -1]
        exact = model.double()(ids[None]).logits[0]
        model.float()
        expected |= {f"input_ids_{k}": ids, f"logits_{k}": logits, f"greedy_ids_{k}": picked, f"greedy_margins_{k}": margins}
        if k == 0:
            expected["greedy_logits_0"] = rows
        facts.append(dict(
            len=length, new=n, attempt=attempt, logits_std=float(logits.std()), min_greedy_margin=float(margins.min()),
            distinct_greedy=len(set(picked.tolist())), recompute_vs_cache_max_abs=float((rows - whole).abs().max()),
            f32_vs_f64_max_abs=float((logits.double() - exact).abs().max()),
        ))  # fmt: skip
    save_file({key: value.contiguous() for key, value in expected.items()}, f"{folder}/expected.safetensors")
    meta = dict(
        name=name, transformers=transformers.__version__, torch=torch.__version__, model_class=type(model).__name__,
        seed=seed, dtype="float32", attention="eager, CPU, float32", tensors=sorted(dict(model.named_parameters())),
        prompts=facts,
    )  # fmt: skip
    with open(f"{folder}/meta.json", "w") as f:
        json.dump(meta, f, indent=1)
    print(name, facts)


if __name__ == "__main__":
    for name in MODELS:
        write(name, os.path.join(sys.argv[1], name))
