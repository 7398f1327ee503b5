"""How fast a model generates on a CPU with packed weights, and how much memory that takes, beside bfloat16 in transformers.

python tests/benchmarks/cpu_generation.py FOLDER    make the models in FOLDER, run each in a process of its own, keep the result

The models have TinyLlama's shape (1.1 billion parameters) and random weights: neither time nor memory depends on their
values. The packed ones have random codes, groups of 128. Time is that of `generate`, the prompt included, in one thread;
wall-clock time and the process's CPU time are both kept, since other programs may run. Memory is the size of the model's
tensors, and what the process touches while it generates: Linux would also count pages of the file that nothing reads again.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import hubquant  # noqa: F401 its loaders

RESULT = Path(__file__).parent / "results" / "cpu" / "llama-1.1b.json"
CONFIG = LlamaConfig(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    vocab_size=32000,
    architectures=["LlamaForCausalLM"],
    dtype="bfloat16",
)
GROUP = 128
PROMPT, NEW, ROUNDS = 16, 48, 3
QUANTIZATION = {
    "bfloat16": None,
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False, "checkpoint_format": "gptq"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
}


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape).to(torch.int32)


def packed(method: str, name: str, n_in: int, n_out: int) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.qweight", words(n_in // 8, n_out) if method == "gptq" else words(n_in, n_out // 8)
    yield f"{name}.qzeros", torch.full((n_in // GROUP, n_out // 8), 0x77777777, dtype=torch.int32)
    yield f"{name}.scales", (1e-3 * torch.rand(n_in // GROUP, n_out)).half()
    if method == "gptq":
        yield f"{name}.g_idx", (torch.arange(n_in) // GROUP).int()


def make(folder: Path, method: str) -> None:
    """A checkpoint of random weights, packed as `method` says."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG)
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if method != "bfloat16" and name.endswith("proj.weight"):
            tensors.update(packed(method, name.removesuffix(".weight"), parameter.shape[1], parameter.shape[0]))
        else:
            tensors[name] = (0.02 * torch.randn(parameter.shape)).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = CONFIG.to_dict()
    if QUANTIZATION[method]:
        config["quantization_config"] = QUANTIZATION[method]
    (folder / "config.json").write_text(json.dumps(config))


def generate(model: PreTrainedModel) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one generation."""
    prompt = torch.arange(PROMPT)[None] + 100
    wall, cpu = time.perf_counter(), time.process_time()
    model.generate(prompt, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return time.perf_counter() - wall, time.process_time() - cpu


def touched(model: PreTrainedModel) -> int:
    """Bytes of memory that the process reads or writes during one generation: the kernel marks pages that are."""
    Path("/proc/self/clear_refs").write_text("1")
    generate(model)
    line = next(x for x in Path("/proc/self/smaps_rollup").read_text().splitlines() if x.startswith("Referenced"))
    return int(line.split()[1]) * 1024


def measure(folder: Path) -> dict[str, float]:
    torch.set_num_threads(1)
    cpu = time.process_time()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loading = time.process_time() - cpu
    generate(model)
    times = [generate(model) for _ in range(ROUNDS)]
    return {
        "tokens_per_second": NEW / min(wall for wall, _ in times),
        "tokens_per_cpu_second": NEW / min(cpu for _, cpu in times),
        "loading_cpu_seconds": loading,
        "tensor_bytes": model.get_memory_footprint(),
        "touched_bytes": touched(model),
    }


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--measure"]:
        print(json.dumps(measure(Path(arguments[1]))))
        return
    rows = {}
    for method in QUANTIZATION:
        folder = Path(arguments[0]) / method
        if not folder.exists():
            make(folder, method)
        done = subprocess.run([sys.executable, __file__, "--measure", str(folder)], capture_output=True, text=True, check=True)
        rows[method] = json.loads(done.stdout.splitlines()[-1])
        print(method, rows[method])
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(CONFIG).parameters())
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    instructions = {"instructions": torch.backends.cpu.get_cpu_capability(), "amx": torch.cpu._is_amx_tile_supported()}
    protocol = {"parameters": parameters, "prompt": PROMPT, "new_tokens": NEW, "threads": 1, "best_of": ROUNDS}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(protocol | instructions | versions | {"weights": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
