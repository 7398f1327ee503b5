"""GGUF files stay packed on CUDA and ROCm through transformers' own GGUF loader, which asks a slot for its kernel.

transformers fills the slot with a Hub kernel that is published for Metal only; else it unpacks the whole model. Where it has
none we fill it with hubquant_kernels.gguf, which offers the same five names; HUBQUANT_BACKEND=1 puts ours first. Nothing is
looked up before a GGUF file is loaded. On a CPU transformers unpacks, as ever.
"""

import os
from importlib.util import find_spec
from typing import Any

import torch
from transformers.integrations.gguf import kernels
from transformers.quantizers import quantizer_gguf

_stock = kernels.get_gguf_kernel


def usable() -> bool:
    """Whether this machine can run our kernels: an NVIDIA or AMD GPU, and Triton."""
    return torch.cuda.is_available() and find_spec("triton") is not None


def get_gguf_kernel() -> Any:
    """In transformers' place: the kernel of the slot, or False if there is none for this machine."""
    if kernels._gguf_kernel is not None:
        return kernels._gguf_kernel
    if os.environ.get("HUBQUANT_BACKEND") == "1" and usable():
        return _fill()
    return _stock() or (usable() and _fill())


def install() -> None:
    kernels.get_gguf_kernel = quantizer_gguf.get_gguf_kernel = get_gguf_kernel


def restore() -> None:
    """transformers' own slot again, empty: GGUF models that were loaded packed cannot run any more."""
    kernels.get_gguf_kernel = quantizer_gguf.get_gguf_kernel = _stock
    kernels._gguf_kernel = None


def _fill() -> Any:
    from hubquant_kernels import gguf  # not before it is needed: it registers operators

    kernels._gguf_kernel = kernels.GgufKernel(gguf)
    return kernels._gguf_kernel
