"""llm-compressor in its own environment, told by a JSON file. It writes compressed-tensors, neither GPTQ's nor AWQ's layout."""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from transformers import AutoModelForCausalLM, AutoTokenizer

if __name__ == "__main__":
    if not torch.accelerator.is_available():  # it pins memory for a device that is not there, which is an error
        IntermediatesCache._pin_intermediate = staticmethod(lambda *a, **k: None)
    job = json.loads(Path(sys.argv[1]).read_text())
    weights = {
        "num_bits": job["bits"], "type": "int", "symmetric": job["symmetric"], "strategy": "group", "group_size": job["group_size"],
    }  # fmt: skip
    scheme = {"ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    recipe = [AWQModifier(), QuantizationModifier(**scheme)] if job["format"] == "awq" else [GPTQModifier(**scheme)]
    windows = json.loads(Path(job["ids"]).read_text())
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(ids) for ids in windows]}),
        recipe=recipe,
        max_seq_length=len(windows[0]),
        num_calibration_samples=len(windows),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(job["out"], save_compressed=True)
