"""Checkpoints of real shapes with seeded random weights, in safetensors and in GGUF."""

import json
import os
import struct

import numpy as np


def tensors(shape):
    """Names and shapes, in the order of the file, for a shape as in run.py."""
    hidden, layers, heads, kv_heads, inner, vocab = shape
    kv = hidden // heads * kv_heads
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "lm_head.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (hidden,)
        yield at + "post_attention_layernorm.weight", (hidden,)
        yield at + "self_attn.q_proj.weight", (hidden, hidden)
        yield at + "self_attn.k_proj.weight", (kv, hidden)
        yield at + "self_attn.v_proj.weight", (kv, hidden)
        yield at + "self_attn.o_proj.weight", (hidden, hidden)
        yield at + "mlp.gate_proj.weight", (inner, hidden)
        yield at + "mlp.up_proj.weight", (inner, hidden)
        yield at + "mlp.down_proj.weight", (hidden, inner)


def write_safetensors(folder, shape):
    """A folder with config.json and bf16 weights; nothing is done where it is there already."""
    if os.path.exists(f"{folder}/config.json"):
        return
    os.makedirs(folder, exist_ok=True)
    hidden, layers, heads, kv_heads, inner, vocab = shape
    rng = np.random.default_rng(0)
    header, offset = {}, 0
    for name, dims in tensors(shape):
        end = offset + 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # Pieces of one long row of normal numbers, each from a random place: as random to the kernels, and quick to make.
    normal = rng.standard_normal(1 << 22, dtype=np.float32) * 0.02
    with open(f"{folder}/model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, dims in tensors(shape):
            if len(dims) == 1:
                values = np.ones(dims, np.float32)
            else:
                n = int(np.prod(dims))
                starts = rng.integers(len(normal), size=n // len(normal) + 1)
                values = np.concatenate([np.roll(normal, s) for s in starts])[:n]
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    config = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=vocab, hidden_size=hidden,
        intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        hidden_act="silu", max_position_embeddings=8192, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16",
    )
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file, indent=1)


def read_safetensors(path):
    """Names and raw bf16 values, one after the other."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint16, "r", offset=8 + length)
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            yield name, data[start // 2 : end // 2].reshape(entry["shape"])


GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def write_gguf(folder, path):
    """The bf16 weights of a folder as GGUF; nothing is done where it is there already."""
    if os.path.exists(path):
        return
    import gguf

    with open(f"{folder}/config.json") as file:
        config = json.load(file)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path + ".part", "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
    for name, values in read_safetensors(f"{folder}/model.safetensors"):
        if values.ndim == 1:
            wide = (values.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(gguf_name(name), wide)
            continue
        for part, n in (("q_proj", heads), ("k_proj", kv_heads)):
            if part in name:
                # Neighbours turn together there, halves here.
                rows, cols = values.shape
                values = values.reshape(n, 2, rows // n // 2, cols).swapaxes(1, 2).reshape(rows, cols)
        raw = np.ascontiguousarray(values).view(np.uint8)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(path + ".part", path)
