"""Rounding a weight to a grid and packing it, and the words of one layout from the other's."""

import torch
from case import Case, Run
from hubquant_kernels.pack import repack_words, round_and_pack

N, K, GROUP = 4096, 14336, 128


def cases() -> list[Case]:
    rounding = [_rounding(layout, bits) for layout, bits in (("gptq", 4), ("gptq", 3), ("gptq", 8), ("awq", 4))]
    return [*rounding, _repacking("awq"), _repacking("gptq")]


def _rounding(layout: str, bits: int) -> Case:
    def prepare() -> dict[str, Run]:
        weight, scales = torch.randn(N, K, device="cuda"), torch.rand(N, K // GROUP, device="cuda").half()
        zeros = torch.full((N, K // GROUP), 2 ** (bits - 1), dtype=torch.uint8, device="cuda")
        return {
            "triton": lambda: round_and_pack(weight, scales, zeros, bits, layout),
            "definition": lambda: round_and_pack._init_fn(weight, scales, zeros, bits, layout),
        }

    return Case("round_and_pack", f"{layout}, {bits} bits, {N} x {K}", prepare, N * K * (4 + bits / 8 + 3 / GROUP))


def _repacking(layout: str) -> Case:
    def prepare() -> dict[str, Run]:
        shape = (K // 8, N) if layout == "awq" else (K, N // 8)
        words = torch.randint(-(2**31), 2**31, shape, device="cuda").to(torch.int32)
        return {"triton": lambda: repack_words(words, layout), "definition": lambda: repack_words._init_fn(words, layout)}

    return Case("repack_words", f"to {layout}, {N} x {K}", prepare, N * K)
