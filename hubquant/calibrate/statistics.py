"""The three sums of one layer input: hessian Σ xᵀx, abs_sum Σ|x|, n_tokens. Every solver and every yardstick comes from them."""

import torch
from hubquant_kernels.hessian import accumulate_hessian
from torch import Tensor


class InputStatistics:
    """Sums over calibration tokens of one linear's input; q/k/v share one, gate/up share one.

    hessian [in, in] fp32, abs_sum [in] fp32, n_tokens. A token whose row is not finite is dropped and counted.
    """

    def __init__(self, in_features: int, device: torch.device | None = None) -> None:
        self.hessian = torch.zeros(in_features, in_features, device=device)
        self.abs_sum = torch.zeros(in_features, device=device)
        self.n_tokens = 0
        self.dropped_rows = 0

    def add(self, x: Tensor) -> None:
        """`x` [..., in], any float dtype."""
        rows = x.reshape(-1, x.shape[-1])
        finite = torch.isfinite(rows).all(dim=1)
        if not finite.all():
            self.dropped_rows += int((~finite).sum())
            rows = rows[finite]
        accumulate_hessian(self.hessian, rows)
        self.abs_sum += rows.float().abs().sum(dim=0)
        self.n_tokens += rows.shape[0]

    @property
    def mean_abs(self) -> Tensor:
        """[in]: mean |x| per input channel."""
        return self.abs_sum / max(self.n_tokens, 1)

    @property
    def importance(self) -> Tensor:
        """[in]: mean x² per input channel; llama.cpp's importance matrix (in_sum2 / counts)."""
        return self.hessian.diagonal() / max(self.n_tokens, 1)

    def scaled(self, s: Tensor) -> "InputStatistics":
        """The statistics of x / s, for weights that were multiplied by s [in] (AWQ's fold)."""
        result = InputStatistics.__new__(InputStatistics)
        result.hessian = self.hessian / (s[:, None] * s[None, :])
        result.abs_sum = self.abs_sum / s
        result.n_tokens, result.dropped_rows = self.n_tokens, self.dropped_rows
        return result

    def output_error(self, weight: Tensor, quantized: Tensor) -> float:
        """tr(ΔHΔᵀ)/tr(WHWᵀ), Δ = quantized − weight [out, in]: the relative squared error of the linear's output."""
        delta = quantized - weight
        error = float(((delta @ self.hessian) * delta).sum())
        scale = float(((weight @ self.hessian) * weight).sum())
        return error / scale if scale > 0 else 0.0
