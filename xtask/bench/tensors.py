"""Merging models: the mergeql program beside mergekit 0.1.5 and beside reading and writing the same bytes, in turn in one run.

Usage: tensors.py FOLDER MERGEQL MERGEKIT [LAYERS]. Four models and a base in the shape of a small Llama; 13 layers are 50M parameters."""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time

folder, mergeql, mergekit = sys.argv[1:4]
layers = int(sys.argv[4]) if len(sys.argv) > 4 else 13
HIDDEN, INNER, VOCAB = 512, 1376, 8000


def shapes():
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for i in range(layers):
        for name in "qkvo":
            yield f"model.layers.{i}.self_attn.{name}_proj.weight", (HIDDEN, HIDDEN)
        yield f"model.layers.{i}.mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"model.layers.{i}.mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"model.layers.{i}.mlp.down_proj.weight", (HIDDEN, INNER)
        yield f"model.layers.{i}.input_layernorm.weight", (HIDDEN,)
        yield f"model.layers.{i}.post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCAB, HIDDEN)


def make(dtype):
    import torch
    from safetensors.torch import save_file

    place = os.path.join(folder, dtype)
    if os.path.exists(os.path.join(place, "m3", "model.safetensors")):
        return place
    generator = torch.Generator().manual_seed(1)
    base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes()}
    for model in ["base", "m0", "m1", "m2", "m3"]:
        path = os.path.join(place, model)
        os.makedirs(path, exist_ok=True)
        change = 0 if model == "base" else 0.005
        tensors = {n: (t + change * torch.randn(t.shape, generator=generator)).to(getattr(torch, dtype)).contiguous() for n, t in base.items()}
        save_file(tensors, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
        config = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
            "num_hidden_layers": layers, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": VOCAB,
            "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": dtype, "hidden_act": "silu",
        }
        with open(os.path.join(path, "config.json"), "w") as file:
            json.dump(config, file)
    return place


def run(command, cwd):
    before = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, dict(os.environ, HF_HUB_OFFLINE="1"), file_actions=[
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0), (os.POSIX_SPAWN_OPEN, 2, os.path.join(folder, "stderr"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)])
    _, status, usage = os.wait4(pid, 0)
    if status:
        sys.exit(f"{command}: {open(os.path.join(folder, 'stderr')).read()[-2000:]}")
    return time.perf_counter() - before, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


CONFIGS = {
    "linear": "merge_method: linear\nmodels:\n" + "".join(f"  - {{model: m{i}, parameters: {{weight: 0.25}}}}\n" for i in range(4)),
}
for method, extra in [("task_arithmetic", ""), ("ties", ", density: 0.3"), ("dare_ties", ", density: 0.3"), ("della", ", density: 0.5, epsilon: 0.1"), ("model_stock", ""), ("breadcrumbs", ", density: 0.5, gamma: 0.01")]:
    CONFIGS[method] = f"merge_method: {method}\nbase_model: base\nmodels:\n" + "".join(f"  - {{model: m{i}, parameters: {{weight: 0.25{extra}}}}}\n" for i in range(4))

if len(sys.argv) > 5:
    make(sys.argv[5])
    sys.exit()

def triad():
    """a = b + 3 c over 3 x 400 MB on all cores: the bandwidth of memory, as McCalpin's STREAM counts it."""
    code = (
        "import time, torch; b, c = torch.rand(100_000_000), torch.rand(100_000_000); a = torch.empty_like(b); times = []\n"
        "for _ in range(5):\n"
        "    start = time.perf_counter(); torch.add(b, c, alpha=3, out=a); times.append(time.perf_counter() - start)\n"
        "print(3 * a.nbytes / min(times) / 1e9)"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


print(f"Memory moves {triad():.1f} GB/s (triad).\n")
print("| dtype | method | mergeql s | GB/s | MB | bytes s | x bytes | mergekit s | x faster | mergekit CPU s | x CPU |")
print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
for dtype in ["float32", "bfloat16"]:
    # In a process of its own: the peak memory of a child counts what its parent held.
    subprocess.run([sys.executable, os.path.abspath(__file__), folder, mergeql, mergekit, str(layers), dtype], check=True)
    place = os.path.join(folder, dtype)
    os.chdir(place)
    for method, config in CONFIGS.items():
        with open("config.yml", "w") as file:
            file.write(config + f"dtype: {dtype}\n")
        inputs = [f"{m}/model.safetensors" for m in (["m0", "m1", "m2", "m3"] + ([] if method == "linear" else ["base"]))]
        ours, io, theirs = [], [], []
        for turn in range(3):
            shutil.rmtree("ours", ignore_errors=True)
            ours.append(run([mergeql, "merge-models", "config.yml", "--out", "ours"], place))
            shutil.rmtree("copy", ignore_errors=True)
            os.makedirs("copy")
            io.append(run(["sh", "-c", "cat " + " ".join(inputs) + " > /dev/null && cp m0/model.safetensors copy/ && sync copy/model.safetensors"], place))
            if turn < 1 or method in ("linear", "task_arithmetic"):
                shutil.rmtree("theirs", ignore_errors=True)
                theirs.append(run([mergekit, "config.yml", "theirs", "--no-copy-tokenizer", "--no-write-model-card"], place))
        middle = lambda runs: min(runs, key=lambda r: abs(r[0] - statistics.median(x[0] for x in runs)))
        (a, acpu, amem), (b, _, _), (c, ccpu, _) = middle(ours), middle(io), middle(theirs)
        # Every model is read to be hashed, and again to be merged; one is written.
        size = os.path.getsize("m0/model.safetensors")
        moved = (2 * len(inputs) + 1) * size / a / 1e9
        print(f"| {dtype} | {method} | {a:.2f} | {moved:.1f} | {amem:.0f} | {b:.2f} | {a / b:.1f} | {c:.2f} | {c / a:.1f} | {ccpu:.1f} | {ccpu / acpu:.1f} |", flush=True)
