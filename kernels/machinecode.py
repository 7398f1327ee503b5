"""A kernel compiled for a GPU that is not there, and what its machine code says. Needs only what comes with triton."""

import hashlib
import json
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import triton
from hubquant_kernels.gpu.compilation import Compilation
from instruction import Instruction
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from walk import issued

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TENSOR = re.compile(r"^(?:[HIQDO]MMA|[HIQ]GMMA|UTC\w*MMA|v_mfma)")
SHAPES: dict[str, int] = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4, "16832": 16 * 8 * 32}
SMALLEST_LOOP = 8  # shorter ones wait for a barrier: they turn while there is nothing to do
WARPS_PER_GROUP = 4  # all warps of a group issue the same wgmma, each for its quarter of the tile


@dataclass(frozen=True)
class Figures:
    """What one configuration became on one target. Counts are static, of one warp (wave), and nothing was run.

    `spills`: bytes of stack plus loads and stores of it (registers, on AMD); `shared`: bytes; `tensor`: tensor-core
    instructions; `wide_loads`, `wide_copies`: 128-bit loads into registers, and asynchronously into shared memory; `loop`:
    instructions of the innermost loop (of the whole kernel if it has none), `loop_tensor`: its tensor-core operations, in
    fp16 operations of equal time (none known on sm_100, whose instructions do not name their shape); `whole`: instructions from
    the first to the last with every loop turned, where the configuration wants it, else 0.
    """

    registers: int
    spills: int
    shared: int
    instructions: int
    tensor: int
    wide_loads: int
    wide_copies: int
    loop: int
    loop_tensor: float
    whole: int = 0


def measure(compilation: Compilation, target: str, cache: Path) -> Figures:
    """Compile for `target` and read the machine code. Results are kept in `cache` under a hash of everything they come from."""
    parts = (
        triton.__version__,
        target,
        compilation.kernel.cache_key,
        *((Path(__file__).parent / name).read_text() for name in ("machinecode.py", "walk.py")),
        repr(replace(compilation, kernel=None)),
    )
    kept = cache / (hashlib.sha256("\n".join(parts).encode()).hexdigest() + ".json")
    if kept.exists():
        return Figures(**json.loads(kept.read_text()))
    figures = _measure(compile_for(compilation, target), target, bool(compilation.most_per_weight))
    cache.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(asdict(figures)))
    return figures


def compile_for(compilation: Compilation, target: str) -> Any:
    """The compiled kernel, with its `asm` and `metadata`. `target`: "sm_90" or "gfx942"."""
    names = compilation.kernel.arg_names
    constants = compilation.constants
    source = ASTSource(
        fn=compilation.kernel,
        signature={n: "constexpr" if n in constants else compilation.signature[n] for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in compilation.aligned},
    )
    options = {
        "num_warps": compilation.num_warps,
        "num_stages": compilation.num_stages,
        "enable_fp_fusion": compilation.fp_fusion,
    }
    nvidia = target.startswith("sm_")
    gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), 32) if nvidia else GPUTarget("hip", target, 64)
    return triton.compile(source, target=gpu, options=options)


def _measure(compiled: Any, target: str, whole: bool) -> Figures:
    if target.startswith("sm_"):
        registers, spills, code = _nvidia(compiled.asm["cubin"])
    else:
        registers, spills, code = _amd(compiled.asm["amdgcn"])
    names = Counter(i.name for i in code)
    loop = innermost_loop(code)
    return Figures(
        registers=registers,
        spills=spills,
        shared=int(compiled.metadata.shared),
        instructions=len(code),
        tensor=_count(names, TENSOR.match),
        wide_loads=_count(names, lambda n: _wide(n, ("LDG.", "LD.")) or n.endswith("load_dwordx4")),
        wide_copies=_count(names, lambda n: _wide(n, ("LDGSTS",)) or n.startswith("UTMALDG")),
        loop=len(loop),
        loop_tensor=sum(_tensor_operations(i.name) for i in loop),
        whole=issued(code) if whole else 0,
    )


def _count(names: Counter[str], wanted: Any) -> int:
    return sum(n for name, n in names.items() if wanted(name))


def _wide(name: str, starts: tuple[str, ...]) -> bool:
    return name.startswith(starts) and "128" in name.split(".")


def _nvidia(cubin: bytes) -> tuple[int, int, list[Instruction]]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        text = _tool("nvdisasm", "-c", file.name)
    code = read_sass(text)
    stack = max(map(int, re.findall(r"STACK:(\d+)", usage)))
    spills = stack + sum(i.name.startswith(("LDL", "STL")) for i in code)
    return max(map(int, re.findall(r"REG:(\d+)", usage))), spills, code


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def _amd(text: str) -> tuple[int, int, list[Instruction]]:
    figures = {key: int(value) for key, value in re.findall(r"\.(\w+_count):\s+(\d+)", text)}
    return figures["vgpr_count"], figures["vgpr_spill_count"] + figures["sgpr_spill_count"], read_amdgcn(text)


def read_sass(text: str) -> list[Instruction]:
    """nvdisasm's text. Padding after the last instruction (a branch to itself, no-operations) is left out."""
    code, labels = [], ()
    for line in text.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            labels = (*labels, label[1])
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+) )?\s*([A-Z][\w.]*)([^;]*)", line):
            predicate, name, rest = found.groups()
            jump = re.search(r"`\((\.L\w+)\)", rest) if name.startswith("BRA") else None
            conditional = bool(predicate) or bool(jump and rest[: jump.start()].strip())
            ends = name.startswith(("EXIT", "RET", "BRA", "BRX")) and not conditional
            if name == "NOP":
                continue  # its label is the next line's
            if not (jump and jump[1] in labels):
                code.append(Instruction(labels, predicate or "", name, _operands(rest), jump[1] if jump else "", not ends))
            labels = ()
    return code


def read_amdgcn(text: str) -> list[Instruction]:
    """LLVM's assembly text."""
    code, labels = [], ()
    for line in text.partition(".end_amdhsa_kernel")[0].splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            labels = (*labels, label[1])
        elif found := re.match(r"\s+([svdgb]\w*_\w+|flat_\w+)\s*(\.LBB\w+)?([^;]*)", line):
            name, target, rest = found[1], found[2] or "", found[3]
            ends = name.startswith(("s_endpgm", "s_branch", "s_setpc"))
            code.append(Instruction(labels, "", name, _operands(rest), target, not ends))
            labels = ()
    return code


def _operands(text: str) -> tuple[str, ...]:
    return tuple(operand.strip() for operand in text.split(",") if operand.strip())


def innermost_loop(code: list[Instruction]) -> list[Instruction]:
    """The largest loop that holds no other loop; the whole code if there is none."""
    starts = {0} | {i for i, line in enumerate(code) if line.labels}
    starts |= {i + 1 for i, line in enumerate(code[:-1]) if line.target or not line.goes_on}
    bounds = [*sorted(starts), len(code)]
    blocks = [code[a:b] for a, b in pairwise(bounds)]
    at = {label: n for n, block in enumerate(blocks) for label in block[0].labels}
    after = [
        {at[b[-1].target] for _ in "x" if b[-1].target in at} | {n + 1 for _ in "x" if b[-1].goes_on and n + 1 < len(blocks)}
        for n, b in enumerate(blocks)
    ]
    loops = [(sorted(body), sum(len(blocks[n]) for n in body)) for body in natural_loops(after)]
    loops = [(body, size) for body, size in loops if size >= SMALLEST_LOOP]
    innermost = [(size, body) for body, size in loops if not any(set(other) < set(body) for other, _ in loops)]
    if not innermost:
        return code
    return [line for n in max(innermost)[1] for line in blocks[n]]


def natural_loops(after: list[set[int]]) -> list[set[int]]:
    """The loops of a flow graph (block 0 is the entry): for each header, all blocks that come back to it without leaving."""
    reached, stack = {0}, [0]
    while stack:
        for n in after[stack.pop()] - reached:
            reached.add(n)
            stack.append(n)
    before = {n: {p for p in reached if n in after[p]} for n in reached}
    dominators = {n: set(reached) for n in reached} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for n in sorted(reached - {0}):
            new = {n} | set.intersection(*(dominators[p] for p in before[n]))
            changed |= new != dominators[n]
            dominators[n] = new
    loops: dict[int, set[int]] = {}
    for end in reached:
        for header in after[end] & dominators[end]:
            body, stack = loops.setdefault(header, {header}), [end]
            while stack:
                n = stack.pop()
                if n not in body:
                    body.add(n)
                    stack.extend(before[n])
    return list(loops.values())


def _tensor_operations(name: str) -> float:
    """Operations of one warp's tensor-core instruction, in fp16 operations of equal time: TF32 takes 2 times, AMD's fp32 8."""
    slower = 2 if "TF32" in name or "xf32" in name else 1
    if found := re.match(r"[HI]GMMA\.(\d+)x(\d+)x(\d+)", name):
        rows, columns, depth = map(int, found.groups())
        return slower * 2 * rows * columns * depth / WARPS_PER_GROUP
    if found := re.match(r"v_mfma_\w+?_(\d+)x(\d+)x(\d+)", name):
        rows, columns, depth = map(int, found.groups())
        return (8 if name.endswith("_f32") else slower) * 2 * rows * columns * depth
    if found := re.match(r"[HI]MMA\.(\d+)", name):
        return slower * 2.0 * SHAPES[found[1]]
    return 0.0
