"""Linears that keep their weights packed. Buffers carry the names of the files, so a state dict loads and saves as it is."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from . import int4_cpu
from .awq_gemv import ROWS, dequantize_awq_gemv, dequantize_awq_gemv_fast, padded_groups
from .forwards import AwqForward as AwqForward  # the kernels library looks for layers in the module of this name
from .forwards import GptqForward as GptqForward
from .int4_matmul import matmul_awq, matmul_dense, matmul_gptq
from .pack import from_awq_order, pack_words, to_awq_order, unpack_words

WORD = 32
PREPARED = ("order", "packed", "pairs", "zeros")  # the channels by group; what int4_cpu.matmul_repacked takes
ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}  # a one in every code of a word


class Int4Linear(nn.Module):
    """What GPTQ's and AWQ's linears have in common: their 4-bit words can be put into a faster order, and back.

    `prepare` is called once the buffers are filled. On a CPU it takes the words' place by torch's own order; elsewhere
    it sorts GPTQ's channels by group. Only `qweight` is empty or changed then: a state dict holds the file's again, and
    whatever moves or converts the layer finds the file's buffers.
    """

    bits = 4
    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    bias: Tensor | None
    order: Tensor | None
    packed: Tensor | None
    pairs: Tensor
    zeros: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.in_groups = False  # whether qweight's channels are known to be in the order of their groups, all of one size
        for name in PREPARED:
            self.register_buffer(name, None, persistent=False)

    def prepare(self) -> None:
        """The fastest order for the device that the buffers are on. Widths and groups that it is not for stay as they are."""
        self.restore()
        group_size, order = (0, None) if self.scales.is_meta else self._groups()
        if not group_size:
            return
        on_cpu = self.scales.device.type == "cpu"
        if self.bits == 4 and on_cpu and int4_cpu.fits(self.out_features, self.in_features, group_size):
            codes, zeros = self._codes(), self._zeros()
            packed = int4_cpu.repack(codes if order is None else codes[:, order])
            self.packed, self.order, self.zeros = packed, order, zeros
            self.pairs = int4_cpu.grid(self.scales, zeros, group_size)
            self.qweight = self.qweight.new_empty(0)  # not None: PEFT asks it where the layer is
        elif self.bits == 4 and order is not None:
            self.qweight = self._words(self._codes()[:, order])
            self.order, self.in_groups = order, True
        else:
            self.in_groups = order is None

    def restore(self) -> None:
        """The file's buffers again."""
        if self.packed is not None or self.order is not None:
            self.qweight = self._file_words()
        self.in_groups = False
        for name in PREPARED:
            setattr(self, name, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.order is not None:
            x = x[..., self.order]
        if self.packed is None:
            out = self._product(x)
        else:
            out = int4_cpu.matmul_repacked(x, self.packed, self.pairs, self.scales, self.zeros)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def _file_words(self) -> Tensor:
        codes = self._codes() if self.packed is None else int4_cpu.codes_of(self.packed)
        return self._words(codes if self.order is None else codes[:, self.order.argsort()])

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.packed is not None or self.order is not None:
            destination[f"{prefix}qweight"] = self._file_words()

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        self.restore()
        super()._load_from_state_dict(*arguments, **keywords)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        prepared = self.packed is not None or self.in_groups
        if prepared:
            self.restore()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if prepared:
            self.prepare()
        return self

    def _groups(self) -> tuple[int, Tensor | None]:
        """Channels per group, 0 where groups differ in size, and the channels by group, None where they are in that order."""
        raise NotImplementedError

    def _codes(self) -> Tensor:
        """[out, in] uint8 from qweight."""
        raise NotImplementedError

    def _words(self, codes: Tensor) -> Tensor:
        """The inverse of `_codes`."""
        raise NotImplementedError

    def _zeros(self) -> Tensor:
        """[n_groups, out] uint8."""
        raise NotImplementedError

    def _product(self, x: Tensor) -> Tensor:
        """x Wᵀ from qweight as it is."""
        raise NotImplementedError


class GptqLinear(Int4Linear):
    """y = x Wᵀ + b with W in GPTQ's layout: `bits` 2, 3, 4 or 8, any g_idx; `zero_offset` 1 for version 1, 0 for version 2."""

    g_idx: Tensor

    def __init__(self, in_features: int, out_features: int, bits: int, group_size: int, zero_offset: int, bias: bool) -> None:
        super().__init__(in_features, out_features)
        self.bits, self.zero_offset = bits, zero_offset
        n_groups = -(-in_features // group_size)
        self.register_buffer("qweight", torch.zeros(in_features * bits // WORD, out_features, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(n_groups, out_features * bits // WORD, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(n_groups, out_features, dtype=torch.float16))
        self.register_buffer("g_idx", torch.arange(in_features, dtype=torch.int32) // group_size)
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float16) if bias else None)

    def _groups(self) -> tuple[int, Tensor | None]:
        group_size, rest = divmod(self.in_features, self.scales.shape[0])
        order = self.g_idx.argsort(stable=True)
        in_order = torch.arange(self.in_features, device=order.device)
        if rest or not torch.equal(self.g_idx[order].long(), in_order // group_size):
            return 0, None
        return group_size, None if torch.equal(order, in_order) else order

    def _codes(self) -> Tensor:
        return unpack_words(self.qweight.T.contiguous(), self.bits)

    def _words(self, codes: Tensor) -> Tensor:
        return pack_words(codes, self.bits).T.contiguous()

    def _zeros(self) -> Tensor:
        qzeros, offset = self._stored_zeros()
        return (unpack_words(qzeros, self.bits) + offset) % 2**self.bits

    def _stored_zeros(self) -> tuple[Tensor, int]:
        """qzeros, and what is added to each of them."""
        return self.qzeros, self.zero_offset

    def _product(self, x: Tensor) -> Tensor:
        qzeros, offset = self._stored_zeros()
        return matmul_gptq(x, self.qweight, qzeros, self.scales, None if self.in_groups else self.g_idx, self.bits, offset)


class GptqCarryLinear(GptqLinear):
    """GPTQ version 1 of 2, 4 or 8 bits as GPTQModel writes it: one was taken from all zeros of a word by a subtraction of words.

    Under a zero of 0 it borrowed from the next zero, which only the addition of words gives back.
    """

    def _stored_zeros(self) -> tuple[Tensor, int]:
        return carried(self.qzeros, self.bits), 0


def carried(qzeros: Tensor, bits: int) -> Tensor:
    """Zeros of version 2 from those of GPTQModel's version 1, for `bits` of ONES."""
    return qzeros + ONES[bits]  # int32 wraps around


class AwqLinear(Int4Linear):
    """y = x Wᵀ + b with W in AWQ's GEMM layout, 4 bits."""

    def __init__(self, in_features: int, out_features: int, group_size: int, bias: bool) -> None:
        super().__init__(in_features, out_features)
        n_groups = in_features // group_size
        self.register_buffer("qweight", torch.zeros(in_features, out_features // 8, dtype=torch.int32))
        self.register_buffer("qzeros", torch.zeros(n_groups, out_features // 8, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(n_groups, out_features, dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float16) if bias else None)

    def _groups(self) -> tuple[int, Tensor | None]:
        return self.in_features // self.scales.shape[0], None

    def _codes(self) -> Tensor:
        return from_awq_order(unpack_words(self.qweight, self.bits)).T.contiguous()

    def _words(self, codes: Tensor) -> Tensor:
        return pack_words(to_awq_order(codes.T.contiguous()), self.bits)

    def _zeros(self) -> Tensor:
        return from_awq_order(unpack_words(self.qzeros, self.bits))

    def _product(self, x: Tensor) -> Tensor:
        return matmul_awq(x, self.qweight, self.qzeros, self.scales)


class AwqGemvLinear(nn.Module):
    """y = x Wᵀ + b with W in AWQ's GEMV layout, 4 bits. Decoded at each call: the layout is older than GEMM and slow here."""

    decode = staticmethod(dequantize_awq_gemv)
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, group_size: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        for name, (shape, dtype) in self.buffers_of_files().items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float16) if bias else None)

    def buffers_of_files(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        groups = padded_groups(self.in_features, self.group_size)
        return {
            "qweight": ((self.out_features, self.in_features // 8), torch.int32),
            "qzeros": ((self.out_features, groups // 8), torch.int32),
            "scales": ((self.out_features, groups), torch.float16),
        }

    def forward(self, x: Tensor) -> Tensor:
        out = matmul_dense(x, self.decode(self.qweight, self.qzeros, self.scales, self.group_size))
        return out if self.bias is None else out + self.bias.to(out.dtype)


class AwqGemvFastLinear(AwqGemvLinear):
    """The same for GEMV fast."""

    decode = staticmethod(dequantize_awq_gemv_fast)

    def buffers_of_files(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        groups = padded_groups(self.in_features, self.group_size)
        return {
            "qweight": ((self.out_features // ROWS, self.in_features), torch.int16),
            "qzeros": ((groups, self.out_features), torch.float16),
            "scales": ((groups, self.out_features), torch.float16),
        }
