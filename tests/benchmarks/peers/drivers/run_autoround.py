"""auto-round in its own environment, told by a JSON file: `iterations` 0 is its rounding to nearest, "awq" its AWQ.

Float32 throughout: its mixed precision is bfloat16, which is 50 times slower on CPUs without instructions for it."""

import json
import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 8  # its default

if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text())
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    windows = torch.tensor(json.loads(Path(job["ids"]).read_text()))
    if job["format"] == "gguf":
        form = f"gguf:{job['mixture'].lower()}"
        scheme = {"scheme": form}
    else:
        form = f"auto_{job['format']}"
        scheme = {"bits": job["bits"], "group_size": job["group_size"], "sym": job["symmetric"]}
    algorithm = {"alg_configs": "awq"} if job["algorithm"] == "awq" else {"iters": job["iterations"]}
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job["model"]),
        **scheme,
        **algorithm,
        dataset=list(windows.split(BATCH)),
        nsamples=windows.shape[0],
        seqlen=windows.shape[1],
        batch_size=BATCH,
        amp=False,
        device_map="cpu",
        enable_torch_compile=False,
    )
    rounding.quantize_and_save(job["out"], format=form)
