"""Makes the small checkpoints beside this file with the tools that other people use, so that the tests load what they really write.

    make .venv-gptqmodel/.installed; export GPTQMODEL_CPU_WORKERS=2; cd tests/integrations/foreign
    ../../../.venv-gptqmodel/bin/python make_fixtures.py gptqmodel
    pip install -c constraints.txt -e . auto-round==0.16.1    # in an environment of its own
    python make_fixtures.py auto-round
    ../../../.venv-gptqmodel/bin/python make_fixtures.py expect
    ../../../.venv-gptqmodel/bin/python make_fixtures.py gemv

Random models of one layer. Beside each checkpoint lie `expected.safetensors`: some tokens, and the logits that GPTQModel
gives for them in float16 from the checkpoint (GPTQModel 7.7.0 for both tools).
"""

import argparse
import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3MoeConfig

HERE = Path(__file__).parent
TOKENIZER = HERE.parents[2] / "hubquant" / "demo" / "data" / "model"
VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}

DYNAMIC = {"-:.*\\.v_proj": {}, "+:.*\\.down_proj": {"bits": 8, "group_size": 32}, ".*\\.o_proj": {"group_size": 64}}
GPTQMODEL: dict[str, dict[str, Any]] = {
    "gptqmodel-4bit-g32": {"bits": 4, "group_size": 32},
    "gptqmodel-4bit-g32-desc-act": {"bits": 4, "group_size": 32, "desc_act": True},
    "gptqmodel-4bit-g128-asymmetric": {"bits": 4, "group_size": 128, "sym": False},
    "gptqmodel-4bit-g64-asymmetric-v2": {"bits": 4, "group_size": 64, "sym": False, "format": "gptq_v2"},
    "gptqmodel-2bit-g32": {"bits": 2, "group_size": 32},
    "gptqmodel-2bit-g64-asymmetric": {"bits": 2, "group_size": 64, "sym": False},
    "gptqmodel-3bit-g64": {"bits": 3, "group_size": 64},
    "gptqmodel-3bit-g32-asymmetric": {"bits": 3, "group_size": 32, "sym": False},
    "gptqmodel-8bit-channel": {"bits": 8, "group_size": -1, "act_group_aware": False},
    "gptqmodel-dynamic-head": {"bits": 4, "group_size": 32, "dynamic": DYNAMIC, "lm_head": True},
    "gptqmodel-moe": {"bits": 4, "group_size": 32},
    "gptqmodel-awq": {"bits": 4, "group_size": 32, "method": "awq", "format": "gemm", "sym": False},
}
GEMV = ("gptqmodel-awq-gemv", "gptqmodel-awq-gemv-fast")  # these it only quantizes to on a GPU, and packs anywhere
AUTO_ROUND: dict[str, dict[str, Any]] = {
    "auto-round-gptq": {"scheme": "W4A16", "group_size": 32, "sym": True, "format": "auto_gptq"},
    "auto-round-gptq-asymmetric": {"scheme": "W4A16", "group_size": 64, "sym": False, "format": "auto_gptq"},
    "auto-round-awq": {"scheme": "W4A16", "group_size": 32, "sym": False, "format": "auto_awq"},
    "auto-round-awq-moe": {"scheme": "W4A16", "group_size": 32, "sym": False, "format": "auto_awq"},
    "auto-round-own": {"scheme": "W4A16", "group_size": 32, "sym": True, "format": "auto_round"},
}


def base(name: str, folder: Path) -> Path:
    """A random model. Every fifth row has no negative weight: its zero is 0, which version 1 of GPTQ cannot say in its bits."""
    tied = "head" not in name
    intermediate = 128 if "awq" in name else 160  # 160: the last of its groups of 64 or 128 is not whole
    if "gptqmodel-awq" in name:
        shape = SHAPE | {"num_key_value_heads": 2}  # its AWQ wants outputs in multiples of 64
        config: Any = LlamaConfig(**shape, intermediate_size=intermediate, tie_word_embeddings=True)
    elif "moe" in name:
        config = Qwen3MoeConfig(**SHAPE, **EXPERTS, intermediate_size=intermediate, tie_word_embeddings=True)
    else:
        config = LlamaConfig(**SHAPE, intermediate_size=intermediate, tie_word_embeddings=tied, attention_bias=tied)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
        with torch.no_grad():
            parameter[::5] = parameter[::5].abs()
    for module_name, module in model.named_modules():
        if module_name.endswith("norm"):
            torch.nn.init.ones_(module.weight)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / file, folder / file)
    return folder


def windows() -> list[dict[str, list[int]]]:
    tokens = torch.randint(2, VOCABULARY, (8, 64), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row.tolist(), "attention_mask": [1] * 64} for row in tokens]


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder to work in: the tools leave logs where they are run."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield Path(folder)


def keep(name: str, made: Path) -> None:
    """What a loader reads of the checkpoint, as it was written, without what names the machine."""
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    config = json.loads((made / "config.json").read_text())
    config["quantization_config"].get("meta", {}).pop("offload_to_disk_path", None)
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    tensors = {n: t for f in sorted(made.glob("*.safetensors")) for n, t in load_file(f).items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def make_gptqmodel(name: str) -> None:
    import gptqmodel

    with scratch() as work:
        config = gptqmodel.QuantizeConfig(**GPTQMODEL[name])
        dtype = torch.float16 if "awq" in name else torch.float32  # its packer of AWQ takes no float32
        model = gptqmodel.GPTQModel.load(str(base(name, work / "base")), config, dtype=dtype)
        model.quantize(windows(), batch_size=1)
        model.save(str(work / "made"))
        keep(name, work / "made")


def make_gemv(name: str) -> None:
    """The AWQ checkpoint with each linear packed again, by GPTQModel's packer for the other layout."""
    from gptqmodel.nn_modules.qlinear.gemv_awq import AwqGEMVLinear
    from gptqmodel.nn_modules.qlinear.gemv_fast_awq import AwqGEMVFastLinear
    from gptqmodel.quantization.awq.utils.packing_utils import reverse_awq_order, unpack_awq

    packer = AwqGEMVFastLinear if name.endswith("fast") else AwqGEMVLinear
    source = HERE / "gptqmodel-awq"
    tensors = load_file(source / "model.safetensors")
    made = {n: t for n, t in tensors.items() if not n.endswith(("qweight", "qzeros", "scales"))}
    for linear in sorted(n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")):
        scales = tensors[f"{linear}.scales"]
        codes, zeros = (
            c & 15 for c in reverse_awq_order(*unpack_awq(tensors[f"{linear}.qweight"], tensors[f"{linear}.qzeros"], 4), 4)
        )
        size = codes.shape[0] // scales.shape[0]
        dense = (codes - zeros.repeat_interleave(size, 0)) * scales.float().repeat_interleave(size, 0)
        layer = torch.nn.Linear(*codes.shape, bias=False)
        layer.weight.data = dense.T.contiguous()
        packed = packer.__new__(packer)
        torch.nn.Module.__init__(packed)
        packed.bits, packed.group_size, packed.in_features, packed.out_features = 4, size, *codes.shape
        packed.pack(layer, scales.T.contiguous(), zeros.T.contiguous())
        made |= {f"{linear}.{suffix}": t.contiguous() for suffix, t in packed.state_dict().items()}
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    config = json.loads((source / "config.json").read_text())
    block = config["quantization_config"]
    block |= {
        k: name.removeprefix("gptqmodel-awq-").replace("-", "_") for k in ("version", "format", "checkpoint_format") if k in block
    }
    (target / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file(made, target / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(source / "expected.safetensors", target / "expected.safetensors")


def make_auto_round(name: str) -> None:
    from auto_round import AutoRound

    settings = dict(AUTO_ROUND[name])
    file_format = settings.pop("format")
    with scratch() as work:
        folder = base(name, work / "base")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tool = AutoRound(model, AutoTokenizer.from_pretrained(folder), iters=0, disable_opt_rtn=True, **settings)
        tool.quantize_and_save(str(work / "made"), format=file_format)
        made = next(f.parent for f in (work / "made").rglob("config.json"))
        keep(name, made)
    if file_format == "auto_round":
        expect_of_auto_round(name)


TOKENS = torch.randint(2, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(2))


def expect_of_auto_round(name: str) -> None:
    """auto-round's logits, for its own method name, by its plain kernel in torch."""
    model = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float16)
    with torch.no_grad():
        logits = model(TOKENS).logits.float()
    print(name, {type(m).__module__ for m in model.modules() if hasattr(m, "qweight")})
    save_file({"tokens": TOKENS, "logits": logits.contiguous()}, HERE / name / "expected.safetensors")


def expect(name: str) -> None:
    """GPTQModel's logits, by its plain kernels in torch."""
    from gptqmodel import BACKEND, GPTQModel

    block = json.loads((HERE / name / "config.json").read_text())["quantization_config"]
    backend = BACKEND.AWQ_TORCH if block["quant_method"] == "awq" else BACKEND.GPTQ_TORCH
    with scratch() as work:
        shutil.copytree(HERE / name, work / "model")
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(TOKENIZER / file, work / "model" / file)
        model = GPTQModel.load(str(work / "model"), backend=backend, dtype=torch.float16)  # they take no float32
        kinds = {type(m).__name__ for m in model.modules() if hasattr(m, "qweight")}
        with torch.no_grad():
            logits = model.model(TOKENS).logits.float()
    print(name, kinds, logits.dtype)
    save_file({"tokens": TOKENS, "logits": logits.contiguous()}, HERE / name / "expected.safetensors")


MAKERS = {"gptqmodel": (GPTQMODEL, make_gptqmodel), "gemv": (GEMV, make_gemv), "auto-round": (AUTO_ROUND, make_auto_round)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=[*MAKERS, "expect"])
    parser.add_argument("names", nargs="*", help="only these")
    arguments = parser.parse_args()
    if arguments.tool == "expect":
        for one in arguments.names or [n for n in GPTQMODEL | AUTO_ROUND if "own" not in n]:
            expect(one)
    else:
        known, make = MAKERS[arguments.tool]
        for one in arguments.names or known:
            make(one)
