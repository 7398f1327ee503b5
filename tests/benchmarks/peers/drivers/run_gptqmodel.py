"""GPTQModel in its own environment, told by a JSON file. Float32: from a bfloat16 checkpoint it would compute in bfloat16."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # its default on two cores is one, with which it refuses to load a model

import torch
from gptqmodel import GPTQModel
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.quantization import FORMAT, METHOD, QuantizeConfig

if __name__ == "__main__":
    AwqTorchLinear.SUPPORTS_DTYPES = [
        *AwqTorchLinear.SUPPORTS_DTYPES,
        torch.float32,
    ]  # else it computes in float32 and does not save
    job = json.loads(Path(sys.argv[1]).read_text())
    kind = (
        {"method": METHOD.AWQ, "format": FORMAT.GEMM} if job["format"] == "awq" else {"method": METHOD.GPTQ, "format": FORMAT.GPTQ}
    )
    config = QuantizeConfig(bits=job["bits"], group_size=job["group_size"], sym=job["symmetric"], **kind)
    windows = json.loads(Path(job["ids"]).read_text())
    model = GPTQModel.load(job["model"], config, dtype=torch.float32, device="cpu")
    model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows], batch_size=1)
    model.save(job["out"])
