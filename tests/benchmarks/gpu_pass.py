"""Where the time of the pass goes on a GPU: Llama 2 7B's layers with random weights, the five default variants.

python tests/benchmarks/gpu_pass.py FOLDER [LAYERS]    make the model in FOLDER, run the pass twice, keep the second run's times

The first run compiles the kernels. Stages are timed with the GPU waited for before and after each, exclusive of the stages
inside them. The vocabulary is the bundled model's, on which only what lies outside the layers depends.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from hubquant import onepass, pipeline
from hubquant.calibrate import statistics
from hubquant.calibrate.source import with_texts
from hubquant.calibrate.statistics import InputStatistics
from hubquant.formats import awq as awq_format
from hubquant.formats import gptq as gptq_format
from hubquant.formats import packed
from hubquant.formats.gguf import writer as gguf_writer
from hubquant.formats.gguf.file import GgufFile
from hubquant.formats.shards import ShardWriter
from hubquant.hub.snapshot import fingerprint_folder
from hubquant.model.checkpoint import Checkpoint
from hubquant.model.decoder import Decoder
from hubquant.quantize import feedback, gptq
from hubquant.recipe import DEFAULT_VARIANTS, Calibration, Recipe

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "hubquant" / "demo" / "data" / "model"
RESULT = Path(__file__).parent / "results" / "gpu" / "pass-7b.json"
# what is timed: where its name is looked up, and what it is called in the table
STAGES: tuple[tuple[Any, str, str], ...] = (
    (Checkpoint, "tensor", "reading the checkpoint"),
    (onepass, "find_inputs", "finding inputs"),
    (Decoder, "run", "forward"),
    (InputStatistics, "add", "other sums"),
    (statistics, "accumulate_hessian", "hessian"),
    (packed.awq_solver, "search_scale", "AWQ's scales"),
    (gptq, "Factor", "GPTQ: factor"),
    (gptq, "gptq_group", "GPTQ: groups"),
    (gptq, "ask_again", "GPTQ: codes asked again"),
    (packed.gptq_solver, "solve", "GPTQ: the rest"),
    (gptq_format, "pack_words", "packing words"),
    (awq_format, "pack_words", "packing words"),
    (InputStatistics, "output_error", "output errors"),
    (gguf_writer, "encode", "GGUF: encoding"),
    (feedback, "encode", "GGUF: encoding"),
    (feedback, "Factor", "GGUF: factor"),
    (feedback, "gptq_block", "GGUF: columns"),
    (feedback, "gptq_codebook_block", "GGUF: columns"),
    (feedback, "ask_again", "GGUF: codes asked again"),
    (gguf_writer, "encode_and_weigh", "GGUF: the rest of error feedback"),
    (gguf_writer, "decode", "GGUF: decoding"),
    (GgufFile, "write", "writing"),
    (ShardWriter, "add", "writing"),
    (onepass, "finish", "finishing files"),
)


class Clock:
    """Seconds by stage, each without those of the stages inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = [0.0]

    def timed(self, call: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            torch.cuda.synchronize()
            started = time.perf_counter()
            self._inside.append(0.0)
            try:
                return call(*arguments, **options)
            finally:
                torch.cuda.synchronize()
                spent = time.perf_counter() - started
                self.seconds[stage] = self.seconds.get(stage, 0.0) + spent - self._inside.pop()
                self._inside[-1] += spent

        return timed


def make(folder: Path, layers: int) -> None:
    """A checkpoint in bfloat16 with the bundled model's tokenizer."""
    folder.mkdir(parents=True)
    for file in BUNDLED.iterdir():
        if "token" in file.name:
            shutil.copyfile(file, folder / file.name)
    vocabulary = json.loads((BUNDLED / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        vocab_size=vocabulary,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    save_file({n: p.detach().cpu() for n, p in model.named_parameters()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict()))


def main(arguments: list[str]) -> None:
    folder, layers = Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 4
    model = folder / f"llama-7b-{layers}-layers"
    if not model.exists():
        make(model, layers)
    recipe = with_texts(Recipe(variants=DEFAULT_VARIANTS, calibration=Calibration()))
    base, clock = fingerprint_folder(model), Clock()
    for measured in (False, True):
        for owner, name, stage in STAGES if measured else ():
            setattr(owner, name, clock.timed(getattr(owner, name), stage))
        torch.cuda.synchronize()
        started = time.perf_counter()
        report = pipeline.quantize(model, folder / "out", recipe, base, lambda *_: None)
        print(f"{'measured' if measured else 'first'}: {time.perf_counter() - started:.1f} s", flush=True)
    kept = {
        "device": report.device,
        "versions": report.versions,
        "layers": layers,
        "calibration_tokens": report.calibration_tokens,
        "seconds": report.seconds,
        "peak_device_memory_bytes": report.peak_device_memory_bytes,
        "stages": dict(sorted(clock.seconds.items(), key=lambda item: -item[1])),
        "variants": {a.variant: a.seconds for a in report.artifacts},
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
