"""One group of GPTQ: the search for its scale and the column loop, of one matrix and of the experts of a layer."""

import torch
from case import Case, Run
from hubquant_kernels.gptq_block import REFITS, TRIED, gptq_block, gptq_group
from hubquant_kernels.grid import fit_group
from torch import Tensor

GROUP = 128


def plainly(weight: Tensor, factor: Tensor, metric: Tensor, symmetric: bool) -> object:
    """The definitions of the search, and of the columns as often as they are tried: that of the whole asks the operators."""
    scale, zero = fit_group._init_fn(weight, metric.diagonal(), 4, symmetric)
    return [gptq_block._init_fn(weight, factor, scale, zero, 15) for _ in range(len(TRIED) + REFITS)]


def cases() -> list[Case]:
    return [_case(*shape, symmetric) for shape in ((1, 4096), (1, 14336), (64, 1536)) for symmetric in (True, False)]


def _case(batch: int, out: int, symmetric: bool) -> Case:
    def prepare() -> dict[str, Run]:
        weight = 0.02 * torch.randn(batch, out, GROUP, device="cuda")
        x = torch.randn(batch, 4 * GROUP, GROUP, device="cuda")
        factor = torch.linalg.cholesky(torch.linalg.inv(x.mT @ x), upper=True)
        arguments = (weight, factor, torch.linalg.inv(factor), torch.ones(batch, GROUP, dtype=torch.bool, device="cuda"))
        diagonal = arguments[2].diagonal(dim1=1, dim2=2).contiguous()
        scale, zero = fit_group(weight, diagonal, 4, symmetric)
        runs: dict[str, Run] = {
            "triton": lambda: gptq_group(*arguments, 4, symmetric),
            "triton, the search": lambda: fit_group(weight, diagonal, 4, symmetric),
            "triton, the columns": lambda: gptq_block(weight, factor, scale, zero, 15),
        }
        return runs if batch > 1 else runs | {"definition": lambda: plainly(weight[0], factor[0], arguments[2][0], symmetric)}

    kind = "symmetric" if symmetric else "asymmetric"
    return Case("gptq_group", f"{batch} x {out} x {GROUP}, {kind}", prepare, 9.0 * batch * out * GROUP)
