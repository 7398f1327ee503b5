"""The sums of one layer input: hessian Σ xᵀx over tokens by their importance, and n_tokens. Every solver and every yardstick comes
from them."""

from functools import cached_property

import torch
from hubquant_kernels.awq_search import quadratic_form
from hubquant_kernels.hessian import accumulate_hessian
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from hubquant.quantize.compensation import Factor
from hubquant.quantize.feedback import block_factor, has_blocks
from hubquant.quantize.gptq import damp_ratio_for
from hubquant.quantize.order import channel_order

# Below one token to eight channels, sums of calibration tokens mislead: measured on held-out tokens of two models (inputs of up and
# down, widths 256 to 768), GPTQ's output error is 0.5 to 0.8 of plain rounding's at 1/8, but up to 1.6 times that at 1/16 and up
# to 7 times at 1/32; an importance matrix at 1/8 is better than none for Q4_K and as good for Q3_K, below it is often worse.
CHANNELS_PER_TOKEN = 8
# Of a row's length: the squares of 2²⁴ such rows add up to a finite float32.
LARGEST_ROW = (torch.finfo(torch.float32).max / 2**24) ** 0.5

# Of the middle length of a window's tokens. No model without attention sinks was seen to have a token of 3 times that; sinks have 9
# to 150 times it. Mean KL divergence of SmolLM2-135M, GPTQ W4g128, by length^p of all tokens: 0.284 at p = −2, 0.141 at 0, 0.099 at
# 1, 0.102 at 2 (gptq-512, 8,176 tokens), and 0.099 with p = 1 for sinks alone; for all tokens it costs models without up to 5 %.
SINK = 4


def token_importance(hidden: Tensor) -> Tensor:
    """[tokens]: how much each token counts in the sums of a layer with output `hidden` [..., tokens, hidden]: all alike, but those
    of SINK times the middle length or more by their length, as part of the middle one.

    Tokens whose hidden states are a hundred times as long as usual are those that all others attend to (attention sinks; Sun et al.
    2024, arXiv 2402.17762), and what is got wrong of them is got wrong everywhere. That tokens should count by the attention that
    they get is RSQ's finding (Sung et al. 2025, arXiv 2503.01820); a length can be had of any architecture.
    """
    lengths = torch.linalg.vector_norm(hidden.flatten(0, -2).float(), dim=1)
    importance = lengths / lengths.nanmedian()
    return torch.where(importance.isfinite() & (importance >= SINK), importance, 1)


class InputStatistics:
    """Sums over calibration tokens of one linear's input; q/k/v share one, gate/up share one.

    hessian [in, in] fp32: Σ importance·xᵀx; squares [in]: Σ x²; n_tokens. A token whose row is not finite, or whose squares would
    not be, is dropped and counted.
    """

    def __init__(self, in_features: int, device: torch.device | None = None) -> None:
        self.hessian = torch.zeros(in_features, in_features, device=device)
        self.squares = torch.zeros(in_features, device=device)
        self.n_tokens = 0
        self.dropped_rows = 0
        self._energies = WeakTensorKeyDictionary()

    def add(self, x: Tensor, importance: Tensor | None = None) -> None:
        """`x` [..., in], any float dtype; `importance` [tokens]: how much each row counts, 1 where it is not given."""
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if rows.dtype in (torch.float32, torch.bfloat16) else rows.float()  # float16 has no room for what counts more
        root = rows.new_ones(len(rows), dtype=torch.float32) if importance is None else importance.sqrt()
        finite = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32) * root <= LARGEST_ROW
        counted = rows * root[:, None].to(rows.dtype)
        if not finite.all():
            self.dropped_rows += int((~finite).sum())
            rows, counted = rows[finite], counted[finite]
        accumulate_hessian(self.hessian, counted)
        self.squares += rows.float().square().sum(0)
        self.n_tokens += rows.shape[0]

    @property
    def width(self) -> int:
        """The number of channels."""
        return self.hessian.shape[0]

    @property
    def tokens_needed(self) -> int:
        """From how many tokens on the sums are a better guide than none."""
        return -(-self.width // CHANNELS_PER_TOKEN)

    @property
    def starved(self) -> bool:
        """Too few tokens came by (to an expert that the router rarely chose): round to nearest, and say so."""
        return self.n_tokens < self.tokens_needed

    @property
    def shortage(self) -> str:
        """A sentence for the record of a starved input's tensors."""
        reached = f"{self.n_tokens or 'no'} calibration token{'s' if self.n_tokens > 1 else ''} reached it"
        return f"{reached}, {self.tokens_needed} are needed"

    @property
    def importance(self) -> Tensor:
        """[in]: mean x² per input channel; llama.cpp's importance matrix (in_sum2 / counts)."""
        return self.squares / max(self.n_tokens, 1)

    @cached_property
    def factor(self) -> Factor | None:
        """For error feedback in GGUF's block types, worked out once for all that read the input and all variants.

        None where there is nothing to go by: starved, dead, or of a width that no block divides. To be asked for when the last
        token was added.
        """
        usable = not self.starved and has_blocks(self.width) and bool(self.hessian.any())
        return block_factor(self.hessian, self.damp_ratio) if usable else None

    @cached_property
    def remaining(self) -> Tensor:
        """[in]: what the square of a channel's error costs once the channels after it made up for it, as part of the loudest
        channel's Σx²; zero of channels that are never active. To be asked for when the last token was added."""
        factor = Factor(self.hessian, channel_order(self.hessian.diagonal()), self.damp_ratio)
        found = torch.empty_like(factor.damp)
        found[factor.order] = factor.R.diagonal().square()
        return found * factor.live

    @property
    def damp_ratio(self) -> float:
        """By how much of its mean the hessian's diagonal is to be raised before it is factored."""
        return damp_ratio_for(self.width, self.n_tokens)

    def scaled(self, s: Tensor) -> "InputStatistics":
        """The statistics of x / s, for weights that were multiplied by s [in] (AWQ's fold)."""
        result = InputStatistics.__new__(InputStatistics)
        result.hessian, result.squares = self.hessian / (s[:, None] * s[None, :]), self.squares / s.square()
        result.n_tokens, result.dropped_rows = self.n_tokens, self.dropped_rows
        result._energies = WeakTensorKeyDictionary()
        return result

    def output_error(self, weight: Tensor, quantized: Tensor) -> float:
        """tr(ΔHΔᵀ)/tr(WHWᵀ), Δ = quantized − weight [out, in]: the relative squared error of the linear's output."""
        return self.relative(float(quadratic_form(quantized - weight, self.hessian)), weight)

    def relative(self, loss: float, weight: Tensor) -> float:
        """A loss tr(ΔHΔᵀ) by tr(WHWᵀ) of weight [out, in]."""
        energy = self.energy(weight)
        return loss / energy if energy > 0 else 0.0

    def energy(self, weight: Tensor) -> float:
        """tr(WHWᵀ) of weight [out, in], worked out once for all variants. To be asked for when the last token was added."""
        if weight not in self._energies:
            self._energies[weight] = float(quadratic_form(weight.float(), self.hessian))
        return float(self._energies[weight])
