"""What the columns of a weight still to be rounded make up for, from a Cholesky factor of the hessian itself.

With R upper and RRᵀ = H, the loss tr(EHEᵀ) of errors E [out, in] is ‖ER‖², and column j of ER holds the errors of columns 0 to j
alone. So columns are rounded in order, each to where it takes back most of what those before it left there. That is GPTQ (Frantar
et al. 2022, arXiv 2210.17323) seen as Babai's nearest plane (Chen et al. 2025, arXiv 2507.18553): its factor U of H⁻¹ is R⁻¹, whose
blocks on the diagonal are all that a block of columns needs. H is never inverted, which costs three times more than the factor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_DAMP_RATIO = 1.0
# What one thread has at work of a matrix: as much as stays in a processor's cache while the hessian passes by. And not more than so
# many rows in all: blocks of their columns then lie in the heap, where larger ones would be mapped anew each time (memory.py).
# A pass over SmolLM2-135M, 17 variants, takes 5 % less with it.
STRIP_BYTES = 8 << 20
STRIP_ROWS = 768
STRIP_ROWS_ON_GPU = 1 << 14
# columns of which products are made at a time
BLOCK = 512


class Factor:
    """A hessian H [in, in] = Σxᵀx, factored for all matrices that read the input: R upper, unit·RRᵀ = H + diag(damp), in `order`.

    order [in]: the columns as they are to be rounded. unit: the largest diagonal element, so that activations of any size stay
    in range. live [in]: where the diagonal is not zero; another channel is on its own, with the mean for its diagonal in R.
    damp [in]: of live channels damp_ratio · mean of the live diagonal, raised tenfold until the factorization succeeds. An all-zero
    H counts as the identity in R. One that no damping helps counts as its diagonal, damped by the mean, in `hessian` too.
    """

    def __init__(self, hessian: Tensor, order: Tensor, damp_ratio: float) -> None:
        self.order = order
        self.live, largest = hessian.diagonal() > 0, hessian.diagonal().amax()
        self.unit = torch.where(largest > 0, largest, 1)
        # R is the lower factor of that, turned round; what was factored is gone by then (0.5 GB at 11,008 channels)
        last_first = order.flip(0)
        L, added, whole = _lower(hessian[last_first][:, last_first].div_(self.unit), damp_ratio)
        self.hessian = hessian if whole else torch.diag(hessian.diagonal().clamp(min=0))
        self.damp = added * self.unit * self.live
        self.R = L.flip(0, 1)
        self._of_block: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def block(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """R[start:end, start:end] [n, n] and its inverse, GPTQ's U; worked out once."""
        if (start, end) not in self._of_block:
            metric = self.R[start:end, start:end].contiguous()
            one = torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
            self._of_block[start, end] = metric, torch.linalg.solve_triangular(metric, one, upper=True)
        return self._of_block[start, end]

    def losses(self, error: Tensor, gradient: Tensor) -> Tensor:
        """diag(EHEᵀ) [out] of error E [out, in], whose gradient is E(H + diag(damp)): far fewer products than of E and H.

        A difference, which rounding may put below zero where the damping has nearly all of it; it is zero then."""
        damped = (gradient * error) @ self.live.float()
        return (damped - error.square() @ self.damp).clamp_(min=0)  # damp is zero of channels that are not live


def _lower(H: Tensor, damp_ratio: float) -> tuple[Tensor, float, bool]:
    """A lower factor of H, which is lost, with its damping; that; and whether it is of the whole H, or of its diagonal."""
    given = H.diagonal().clone()
    live = given > 0
    if not bool(live.any()):
        return torch.diag((torch.ones_like(given) + damp_ratio).sqrt()), damp_ratio, True
    mean = float(given[live].mean())
    diagonal = torch.where(live, given, mean)
    while damp_ratio <= MAX_DAMP_RATIO:
        H.diagonal().copy_(diagonal + damp_ratio * mean)
        L, failed = torch.linalg.cholesky_ex(H)
        if not failed:
            return L, damp_ratio * mean, True
        damp_ratio *= 10
    # rounding without compensation, which needs no factorization
    return torch.diag((diagonal + mean).sqrt()), mean, False


@dataclass(frozen=True)
class Block:
    """Columns start to end. `metric` [n, n]: upper, of R; `inverse` [n, n]: GPTQ's U; `carried` [out, n]: the errors of all columns
    before these, in ER."""

    start: int
    end: int
    metric: Tensor
    inverse: Tensor
    carried: Tensor

    def target(self, weight: Tensor) -> Tensor:
        """What weight [out, n] is to be rounded to: with the compensation of the columns before."""
        return torch.addmm(weight, self.carried, self.inverse)


class Compensation:
    """The errors E of `rows` rows so far, carried to the columns after them: ER [out, in], in the order of R."""

    def __init__(self, factor: Factor, rows: int) -> None:
        self.factor, self.ER = factor, factor.R.new_zeros(rows, factor.R.shape[0])

    def block(self, start: int, end: int) -> Block:
        return Block(start, end, *self.factor.block(start, end), self.ER[:, start:end])

    def carry(self, block: Block, left: Tensor) -> None:
        """`left` [out, n]: of ER after the block was rounded: what GPTQ calls Err, (w − q)/U_jj of each column in its turn."""
        error = (left - block.carried) @ block.inverse
        self.ER[:, block.start : block.end] = left
        self.ER[:, block.end :].addmm_(error, self.factor.R[block.start : block.end, block.end :])

    def gradient(self) -> Tensor:
        """E(H + diag(damp)) [out, in], columns as they come; a column that is on its own has its error times R's diagonal there."""
        R, order, result = self.factor.R, self.factor.order, torch.empty_like(self.ER)
        for start in range(0, len(R), BLOCK):
            columns = slice(start, start + BLOCK)
            result[:, order[columns]] = (self.ER[:, start:] @ R[columns, start:].T).mul_(self.factor.unit)
        return result


def strip_bytes() -> int:
    """The most that is at work of a matrix on a CPU."""
    return torch.get_num_threads() * STRIP_BYTES


def strips(matrix: Tensor) -> Iterator[slice]:
    """The rows of matrix [out, in] in parts. They are independent, and solved a part at a time what is at work of them stays in the
    processor's cache, and is never much."""
    rows = STRIP_ROWS_ON_GPU
    if matrix.device.type == "cpu":
        rows = min(STRIP_ROWS, max(32, strip_bytes() // (4 * matrix.shape[1]) // 32 * 32))
    return (slice(start, start + rows) for start in range(0, len(matrix), rows))
