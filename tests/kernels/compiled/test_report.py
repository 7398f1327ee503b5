"""What the shipped configurations compile to: the gate, and that the gate sees what it is for."""

from dataclasses import replace
from pathlib import Path

import pytest
import report
import triton
import triton.language as tl
from hubquant_kernels.gpu.compilation import Compilation
from machinecode import Figures, compile_for, innermost_loop, measure, read_amdgcn, read_sass
from parts import PARTS
from walk import issued


@triton.jit
def _copy(x, out, n, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(out + at, tl.load(x + at, mask=at < n), mask=at < n)


@triton.jit
def _crowded(x, out, n, TILE: tl.constexpr):
    """512 values live in every thread of a warp, twice as many as there are registers."""
    at = tl.arange(0, TILE)
    table = tl.load(x + at[:, None] * TILE + at[None, :])
    for _ in range(n):
        table = table * table + 1.0
    tl.store(out + at[:, None] * TILE + at[None, :], table)


def compilation(kernel: object, aligned: tuple[str, ...] = ("x", "out", "n"), **constants: int) -> Compilation:
    signature = {"x": "*fp32", "out": "*fp32", "n": "i32"}
    return Compilation("test", kernel, signature, constants, aligned)


FINE = Figures(
    registers=100, spills=0, shared=1000, instructions=500, tensor=4, wide_loads=2, wide_copies=0, loop=100, loop_tensor=0.0
)
ONE = replace(compilation(_copy, TILE=1024), tensor_cores=True)


@pytest.mark.timeout(1800)
def test_everything_shipped_compiles_and_is_as_good_as_committed() -> None:
    chosen = report.compilations()
    assert report.check(chosen, report.tabulate(chosen)) == []


def test_the_committed_report_is_of_the_committed_figures() -> None:
    assert report.REPORT.read_text() == report.document(report.compilations(), report.read_committed())


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_wide_loads_are_seen_where_pointers_are_aligned_and_only_there(target: str, tmp_path: Path) -> None:
    aligned, loose = compilation(_copy, TILE=1024), compilation(_copy, aligned=(), TILE=1024)
    assert measure(aligned, target, tmp_path).wide_loads > 0
    figures = measure(loose, target, tmp_path)
    assert figures.wide_loads == 0
    assert any("128 bits" in sentence for sentence in report.problems(loose, target, figures, figures))


def test_spilled_registers_are_seen(tmp_path: Path) -> None:
    figures = measure(replace(compilation(_crowded, TILE=128), num_warps=1), "sm_80", tmp_path)
    assert figures.spills > 0
    assert any("spilled" in sentence for sentence in report.problems(ONE, "sm_80", figures, figures))


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    first = measure(compilation(_copy, TILE=512), "sm_80", tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert measure(compilation(_copy, TILE=512), "sm_80", tmp_path) == first
    assert len(list(tmp_path.iterdir())) == 1
    measure(compilation(_copy, TILE=256), "sm_80", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"spills": 8}, "spilled"),
        ({"shared": 200 * 1024}, "shared memory"),
        ({"tensor": 0}, "no tensor-core"),
        ({"wide_loads": 0}, "128 bits"),
        ({"registers": 106}, "registers was 100 and is 106"),
        ({"loop": 106}, "loop was 100 and is 106"),
        ({"instructions": 530}, "instructions was 500"),
        ({"tensor": 3}, "tensor was 4 and is 3"),
        ({"shared": 1100}, "shared was 1000"),
    ],
)
def test_each_thing_that_must_not_be_is_named(change: dict[str, int], sentence: str) -> None:
    assert report.problems(ONE, "sm_80", FINE, FINE) == []
    assert any(sentence in found for found in report.problems(ONE, "sm_80", replace(FINE, **change), FINE))


def test_five_percent_are_let_pass_and_figures_that_nobody_committed_are_not() -> None:
    assert report.problems(ONE, "sm_80", replace(FINE, registers=105), FINE) == []
    assert any("not in report.json" in sentence for sentence in report.problems(ONE, "sm_80", FINE, None))


def test_bounds_are_times_on_the_part_relative_to_the_longest() -> None:
    one = replace(ONE, bytes_read=2.039e12 / 1e6)  # a microsecond on an A100
    figures = replace(FINE, loop=round(PARTS["sm_80"].issue / 4 / 2e6))  # half of one, by four warps
    memory, issue, tensor = report.bounds(one, figures, PARTS["sm_80"])
    assert (memory, round(issue, 3), tensor) == (1.0, 0.5, 0.0)


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/               @P0 BRA `(.L_x_3) ;
.L_x_0:
        /*0020*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_1:
{body}
        /*0200*/               @P1 BRA `(.L_x_1) ;
        /*0210*/                   SYNCS.PHASECHK.TRYWAIT P1, [R3], R4 ;
        /*0220*/              @!P1 BRA `(.L_x_4) ;
.L_x_2:
        /*0230*/              @!P0 BRA `(.L_x_0) ;
.L_x_3:
        /*0240*/                   EXIT ;
.L_x_4:
        /*0250*/                   SYNCS.PHASECHK.TRYWAIT P1, [R3], R4 ;
        /*0260*/              @!P1 BRA `(.L_x_4) ;
        /*0270*/                   BRA `(.L_x_2) ;
.L_x_5:
        /*0280*/                   BRA `(.L_x_5);
        /*0290*/                   NOP;
"""


def test_the_innermost_loop_is_found_though_code_out_of_line_jumps_back() -> None:
    body = "\n".join(f"        /*{0x100 + 16 * i:04x}*/                   FFMA R{i}, R1, R2, R3 ;" for i in range(10))
    code = read_sass(SASS.format(body=body))
    assert [i.name for i in innermost_loop(code)] == ["FFMA"] * 10 + ["BRA"]
    assert code[-1].name == "BRA"
    assert len(code) == 21  # without the padding after EXIT


def test_amd_loops_are_found_by_their_labels() -> None:
    body = "\n".join(f"\tv_fma_f32 v{i}, v1, v2, v3" for i in range(9))
    text = f"\ts_load_dwordx2 s[2:3], s[0:1], 0x0\n.LBB0_1:    ; loop\n{body}\n\ts_cbranch_scc1 .LBB0_1\n\ts_endpgm\n"
    assert [i.name for i in innermost_loop(read_amdgcn(text))] == ["v_fma_f32"] * 9 + ["s_cbranch_scc1"]


COUNTED = """
        /*0000*/                   MOV R2, 0xfffffffe ;
.L_x_0:
        /*0010*/                   CS2R R4, SRZ ;
.L_x_1:
        /*0020*/                   IADD3 R4, R4, 0x1, RZ ;
        /*0030*/                   ISETP.NE.U32.AND P1, PT, R4, 0x5, PT ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/                   IADD3 R2, R2, 0x2, RZ ;
        /*0060*/                   ISETP.GE.AND P0, PT, R2, {end}, PT ;
        /*0070*/               @P0 CALL.REL.NOINC `(.L_x_2) ;
        /*0080*/                   BRA `(.L_x_0) ;
.L_x_2:
        /*0090*/                   NOP ;
        /*00a0*/                   EXIT ;
"""


def test_nested_loops_are_counted_as_often_as_they_turn() -> None:
    inner = 5 * 3
    assert issued(read_sass(COUNTED.format(end="0x4"))) == 1 + 3 * (1 + inner + 4) - 1 + 1
    body = "\n.LBB0_1:\n\ts_add_i32 s2, s2, 2\n\ts_cmp_lg_u32 s2, {}\n\ts_nop 0\n\ts_cbranch_scc1 .LBB0_1\n\ts_endpgm\n"
    assert issued(read_amdgcn("\ts_mov_b32 s2, 0" + body.format("6"))) == 1 + 3 * 4 + 1
    with pytest.raises(ValueError, match="cannot be told"):
        issued(read_amdgcn("\ts_mov_b32 s2, 0" + body.format("s7")))


def test_too_many_instructions_per_weight_are_seen() -> None:
    one = replace(ONE, weights=1024, most_per_weight=25.0)
    assert report.problems(one, "sm_80", replace(FINE, whole=6400), replace(FINE, whole=6400)) == []
    for whole in (0, 6401):
        figures = replace(FINE, whole=whole)
        assert any("at most 25" in sentence for sentence in report.problems(one, "sm_80", figures, figures))


def test_what_is_compiled_is_what_the_configuration_says() -> None:
    compiled = compile_for(replace(compilation(_copy, TILE=1024), num_warps=8), "sm_90")
    assert compiled.metadata.num_warps == 8
    assert compiled.metadata.target.arch == 90
