"""Peak memory of one pass over models of more and more layers: it is that of one layer, its sums and what its solvers hold.

`make memory` writes random checkpoints of Llama-2-7B's shape in bfloat16 shards, makes three variants of each in a process of its
own, and compares the largest resident set with what `hubquant plan` says. Few tokens, but enough that no input is starved of them
(11,008 channels need 1,376): more cost time, and no memory.
It takes hours on few cores, so what is measured is kept, and a pass that was stopped goes on where it stood. The peak is what the
pass itself reports, over all its processes, and at least that of the last one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

VARIANTS = ["gptq-int4-g128", "awq-int4-g128", "gguf-q4_k_m"]
SHARD_LAYERS = 4
HERE = Path(__file__).parent
INDEX = "model.safetensors.index.json"
HUBQUANT = [sys.executable, "-m", "hubquant"]


def write_model(folder: Path, layers: int, hidden: int, intermediate: int, heads: int, vocabulary: int) -> Path:
    """A random Llama in shards, tensor by tensor: this process needs no more memory than a shard either."""
    tokenizer = Path(str(files("hubquant.demo"))) / "data" / "model"
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=False, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    random = torch.Generator().manual_seed(0)
    shards: dict[str, list[str]] = {}
    for name in shapes:
        layer = int(name.split(".")[2]) // SHARD_LAYERS + 1 if ".layers." in name else 0
        shards.setdefault(f"model-{layer:05d}.safetensors", []).append(name)
    for shard, names in shards.items():
        tensors = {}
        for name in names:
            norm = len(shapes[name]) == 1
            values = torch.ones(shapes[name]) if norm else torch.randn(shapes[name], generator=random) * 0.02
            tensors[name] = values.to(torch.bfloat16)
        save_file(tensors, folder / shard, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def measured(arguments: list[str], out: Path) -> tuple[int, int, float]:
    """Largest resident set of hubquant with these arguments and largest size of its output folder, in bytes, and its seconds."""
    with tempfile.NamedTemporaryFile(mode="r") as held:
        command = [sys.executable, str(HERE / "watched.py"), str(out), held.name, *arguments]
        told = subprocess.check_output([sys.executable, str(HERE / "peers/measure.py"), os.devnull, *command], text=True)
        used = json.loads(told)
        if used["exit_code"]:
            raise SystemExit(f"hubquant {' '.join(arguments)} failed")
        return used["peak_bytes"], int(held.read()), used["wall_seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for checkpoints and outputs, one at a time, and for what was measured")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--windows", type=int, default=12)
    parser.add_argument("--window", type=int, default=128)
    options = parser.parse_args()
    sizes = (options.hidden, options.intermediate, options.heads, options.vocabulary)
    asked = [part for name in options.variants for part in ("-v", name)]
    asked += ["--windows", str(options.windows), "--window", str(options.window)]
    rows = [row_of(options.folder / f"{layers}-layers", layers, sizes, asked) for layers in options.layers]
    growth = 100 * (rows[-1]["memory"] / rows[0]["memory"] - 1)
    print(f"growth from {options.layers[0]} to {options.layers[-1]} layers: {growth:.1f} %")


def row_of(folder: Path, layers: int, sizes: tuple[int, int, int, int], asked: list[str]) -> dict[str, Any]:
    """What a pass over so many layers takes, printed, and kept in `folder`."""
    model, out, kept = folder / "model", folder / "out", folder / "measured.json"
    if not kept.exists():
        if not (model / INDEX).exists():
            shutil.rmtree(model, ignore_errors=True)
            write_model(model, layers, *sizes)
        planned = json.loads(subprocess.check_output([*HUBQUANT, "plan", str(model), *asked, "--json"]))["needs"]
        memory, disk, seconds = measured(["quantize", str(model), "-o", str(out), *asked, "--no-evaluate"], out)
        memory = max(memory, json.loads((out / "hubquant.json").read_text())["peak_memory_bytes"])
        row = {"asked": asked, "memory": memory, "disk": disk, "seconds": seconds, "planned": planned}
        kept.write_text(json.dumps(row))
        shutil.rmtree(model)
        shutil.rmtree(out)
    row = json.loads(kept.read_text())
    if row["asked"] != asked:
        raise SystemExit(f"{kept} is of {' '.join(row['asked'])}; remove it, or name another folder")
    planned = row["planned"]
    print(
        f"{layers} layers: peak memory {row['memory'] / 1e9:.2f} GB (planned {planned['memory_bytes'] / 1e9:.2f}), "
        f"disk {row['disk'] / 1e9:.2f} GB (planned {planned['disk_bytes'] / 1e9:.2f}), {row['seconds']:.0f} s "
        f"(planned {planned['seconds']:.0f})",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()
