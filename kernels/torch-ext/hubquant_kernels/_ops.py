"""Where this build's operators live in torch.ops. The Hub's builder writes its own file in this one's place."""

import torch

ops = torch.ops.hubquant_kernels


def add_op_namespace_prefix(name: str) -> str:
    return f"hubquant_kernels::{name}"
