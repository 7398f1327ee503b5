"""Packing against references written out from the formats' descriptions, one bit field at a time."""

import pytest
import torch
from hubquant_kernels.pack import (
    AWQ_ORDER,
    BITS,
    from_awq_order,
    pack_words,
    repack_words,
    round_and_pack,
    to_awq_order,
    unpack_words,
)
from hypothesis import given, settings
from hypothesis import strategies as st

UNIT = {2: 16, 3: 32, 4: 8, 8: 4}  # codes that fill whole words


def reference_words(codes: list[int], bits: int) -> list[int]:
    """Signed 32-bit integers, the first code in the lowest bits: Python's unbounded integers, then two's complement."""
    stream = sum(code << (bits * i) for i, code in enumerate(codes))
    words = [stream >> (32 * w) & 0xFFFFFFFF for w in range(len(codes) * bits // 32)]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_words_are_those_of_the_reference_and_unpack_again(bits: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 4), "words per row") * UNIT[bits]
    rows = data.draw(st.lists(st.lists(st.integers(0, 2**bits - 1), min_size=n, max_size=n), min_size=1, max_size=3))
    codes = torch.tensor(rows, dtype=torch.uint8)
    words = pack_words(codes, bits)
    assert words.dtype == torch.int32
    assert words.tolist() == [reference_words(row, bits) for row in rows]
    back = unpack_words(words, bits)
    assert back.dtype == torch.uint8
    assert torch.equal(back, codes)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_at_every_position(bits: int) -> None:
    unit = UNIT[bits]
    position, code = torch.meshgrid(torch.arange(unit), torch.arange(2**bits), indexing="ij")
    codes = torch.zeros(unit * 2**bits, unit, dtype=torch.uint8)
    codes[torch.arange(codes.shape[0]), position.flatten()] = code.flatten().to(torch.uint8)
    words = pack_words(codes, bits)
    assert words.tolist() == [reference_words(row, bits) for row in codes.tolist()]
    assert torch.equal(unpack_words(words, bits), codes)


@pytest.mark.parametrize("bits", BITS)
def test_the_last_code_reaches_the_sign_bit(bits: int) -> None:
    codes = torch.zeros(1, UNIT[bits], dtype=torch.uint8)
    codes[0, -1] = 2**bits - 1
    assert pack_words(codes, bits)[0, -1] == -(1 << (32 - bits))
    assert bool((pack_words(torch.full_like(codes, 2**bits - 1), bits) == -1).all())


def test_codes_of_3_bits_lie_as_gptq_lays_them() -> None:
    """Ten codes and two bits of the eleventh; its third bit, ten codes and one bit of the next; its two others and ten codes."""
    codes = torch.randint(0, 8, (5, 32), generator=torch.Generator().manual_seed(4))
    for row, found in zip(codes.tolist(), pack_words(codes.to(torch.uint8), 3).tolist(), strict=True):
        low, middle, high = row[:11], row[10:22], row[21:]
        words = (
            sum(code << 3 * i for i, code in enumerate(low[:10])) | (low[10] & 3) << 30,
            middle[0] >> 2 | sum(code << (3 * i + 1) for i, code in enumerate(middle[1:11])) | (middle[11] & 1) << 31,
            high[0] >> 1 | sum(code << (3 * i + 2) for i, code in enumerate(high[1:])),
        )
        assert [word & 0xFFFFFFFF for word in found] == list(words)


@pytest.mark.parametrize("bits", BITS)
def test_any_word_survives(bits: int) -> None:
    words = torch.randint(-(2**31), 2**31, (64, 6), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    words[0] = torch.tensor([-(2**31), 2**31 - 1, -1, 0, 1, -(2**31)], dtype=torch.int32)
    assert torch.equal(pack_words(unpack_words(words, bits), bits), words)


def test_awq_words_hold_columns_0_2_4_6_1_3_5_7() -> None:
    """AutoAWQ's layout, written out: bits 4i..4i+3 of word w hold column 8w + (0, 2, 4, 6, 1, 3, 5, 7)[i]."""
    codes = torch.randint(0, 16, (3, 24), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    words = pack_words(to_awq_order(codes), 4)
    for row in range(3):
        for word in range(3):
            bits = words[row, word].item() & 0xFFFFFFFF
            for i, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                assert (bits >> (4 * i)) & 15 == codes[row, 8 * word + column].item()


def test_awq_order_is_a_permutation_and_its_inverse_undoes_it() -> None:
    columns = torch.arange(16)
    assert to_awq_order(columns).tolist() == [*AWQ_ORDER, *(8 + c for c in AWQ_ORDER)]
    assert torch.equal(from_awq_order(to_awq_order(columns)), columns)
    assert torch.equal(to_awq_order(from_awq_order(columns)), columns)


def test_codes_that_do_not_fill_their_words_are_refused() -> None:
    with pytest.raises(RuntimeError, match="unflatten"):
        pack_words(torch.zeros(2, 7, dtype=torch.uint8), 4)


@pytest.mark.parametrize("bits", [0, 5, 16])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"{bits} bits"):
        pack_words(torch.zeros(1, 32, dtype=torch.uint8), bits)
    with pytest.raises(ValueError, match=f"{bits} bits"):
        unpack_words(torch.zeros(1, 3, dtype=torch.int32), bits)


@pytest.mark.parametrize("bits", BITS)
def test_operators_keep_torchs_rules(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 32), generator=torch.Generator().manual_seed(2)).to(torch.uint8)
    torch.library.opcheck(pack_words, (codes, bits))
    torch.library.opcheck(pack_words, (codes.T.contiguous().T, bits))  # not contiguous
    torch.library.opcheck(unpack_words, (pack_words(codes, bits), bits))


@pytest.mark.parametrize(("layout", "bits"), [("gptq", 2), ("gptq", 3), ("gptq", 4), ("gptq", 8), ("awq", 4)])
def test_the_nearest_codes_are_packed(layout: str, bits: int) -> None:
    """Weight by weight: Python's round, which also takes the even one of two."""
    random = torch.Generator().manual_seed(bits)
    weight = 0.25 * torch.randint(-(2 ** (bits + 1)), 2 ** (bits + 1), (32, 64), generator=random)
    zeros = torch.randint(0, 2**bits, (32, 2), generator=random).to(torch.uint8)
    qweight = round_and_pack(weight, torch.full((32, 2), 0.5).half(), zeros, bits, layout)
    found = unpack_words(qweight.T.contiguous(), bits) if layout == "gptq" else from_awq_order(unpack_words(qweight, 4)).T
    for n in range(32):
        for k in range(64):
            code = round(float(weight[n, k]) / 0.5) + int(zeros[n, k // 32])
            assert found[n, k] == min(max(code, 0), 2**bits - 1)


def test_words_of_one_layout_hold_the_codes_of_the_other() -> None:
    codes = torch.randint(0, 16, (24, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)  # [out, in]
    gptq = pack_words(codes, 4).T.contiguous()
    awq = pack_words(to_awq_order(codes.T.contiguous()), 4)
    assert torch.equal(repack_words(gptq, "awq"), awq)
    assert torch.equal(repack_words(awq, "gptq"), gptq)


def test_layouts_that_are_not_there_are_refused() -> None:
    weight, scales, zeros = torch.zeros(32, 32), torch.ones(32, 1), torch.zeros(32, 1).to(torch.uint8)
    for layout, bits in (("awq", 3), ("marlin", 4), ("gptq", 5)):
        with pytest.raises(ValueError, match=f"{bits} bits"):
            round_and_pack(weight, scales, zeros, bits, layout)
    with pytest.raises(ValueError, match="'marlin'"):
        repack_words(torch.zeros(8, 8, dtype=torch.int32), "marlin")


def test_rounding_and_repacking_keep_torchs_rules() -> None:
    weight, scales, zeros = torch.randn(16, 32), torch.ones(16, 2).half(), torch.zeros(16, 2).to(torch.uint8)
    for layout in ("gptq", "awq"):
        torch.library.opcheck(round_and_pack, (weight, scales, zeros, 4, layout))
        torch.library.opcheck(repack_words, (torch.zeros(8, 8, dtype=torch.int32), layout))
