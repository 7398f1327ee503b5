"""Machine code followed from its first instruction to its last, every loop as often as it turns; nothing is run.

Only integers that the code makes from constants are computed, which is what loops over tl.constexpr ranges count with. All
other values are unknown, and a branch on one of them is not taken: such branches skip what a mask leaves out.
"""

import operator
import re
import struct
from collections.abc import Callable

from instruction import Instruction

MOST_STEPS = 1_000_000
WORD = 1 << 32
RELATIONS: dict[str, Callable[[int, int], bool]] = {
    **{"EQ": operator.eq, "NE": operator.ne, "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge},
    **{"eq": operator.eq, "lg": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge},
}
SCALAR: dict[str, Callable[[int, int], int]] = {
    "s_add_i32": operator.add,
    "s_add_u32": operator.add,
    "s_sub_i32": operator.sub,
    "s_and_b64": operator.and_,
    "s_or_b64": operator.or_,
    "s_xor_b64": operator.xor,
    "s_andn2_b64": lambda a, b: a & ~b,
}
KEEPS_SCC = ("s_nop", "s_waitcnt", "s_barrier", "s_load", "s_mul")
# values of registers, as 0..2³²−1, and of predicates; who is absent is unknown
Known = dict[str, int]


def issued(code: list[Instruction]) -> int:
    """Instructions that one warp (wave) issues. Raises ValueError if a loop turns as often as data say."""
    nvidia = code[0].name[0].isupper()
    at = {label: n for n, line in enumerate(code) for label in line.labels}
    known: Known = {}
    place = steps = 0
    while place < len(code):
        line = code[place]
        steps += 1
        if steps > MOST_STEPS:
            raise ValueError(f"a loop does not end after {MOST_STEPS} instructions")
        taken = _sass_condition(line, known) if nvidia else _amd_condition(line, known)
        if line.name.startswith(("RET", "s_setpc")):
            raise ValueError("subroutines are not followed")
        target = _called(line) or line.target
        if target in at:
            if taken is None and at[target] <= place:
                raise ValueError(f"how often the loop from {target} on turns cannot be told from the code")
            place = at[target] if taken else place + 1
            continue
        if (taken or not line.predicate) and not line.goes_on:
            break
        if nvidia:
            _sass(line, taken, known)
        else:
            _amd(line, known)
        place += 1
    return steps


def _called(line: Instruction) -> str:
    """ptxas leaves loops on sm_80 by calls that never return."""
    found = re.fullmatch(r"`\((\.L\w+)\)", line.operands[-1]) if line.name.startswith("CALL") else None
    return found[1] if found else ""


def _sass_condition(line: Instruction, known: Known) -> int | None:
    """Whether the line is executed: 1, 0, or None for unknown."""
    conditions = [line.predicate] if line.predicate else []
    if line.target:
        conditions += line.operands[:-1]
    values = [_sass_value(c, known) for c in conditions]
    return 0 if 0 in values else None if None in values else 1


def _sass_value(operand: str, known: Known) -> int | None:
    found = re.fullmatch(r"([-!~]?)(0x[0-9a-f]+|\d+|U?[RP]\w+)(?:\.reuse)?", operand)
    if not found:
        return None
    sign, name = found.groups()
    if name in ("RZ", "URZ", "PT", "UPT"):
        value: int | None = int(name.endswith("PT"))
    else:
        value = int(name, 0) if name[0].isdigit() else known.get(name)
    if value is None or not sign:
        return value
    return {"-": -value % WORD, "~": ~value % WORD, "!": 1 - value}[sign]


def _sass(line: Instruction, taken: int | None, known: Known) -> None:
    """What the line writes is known, or from now on unknown."""
    if taken == 0 or not line.operands:
        return
    results = {} if taken is None else _sass_results(line, known)
    for name in _sass_written(line):
        known.pop(name, None)
    known.update(results)


def _sass_written(line: Instruction) -> list[str]:
    """Its leading predicates and register, and the predicates behind that; of wide results all registers."""
    written: list[str] = []
    for operand in line.operands:
        if not (found := re.fullmatch(r"(U?[RP])(\d+)(?:\.\w+)?", operand)) and operand not in ("PT", "UPT", "RZ", "URZ"):
            break
        is_predicate = "P" in operand
        only_predicates = re.search(r"SETP|PLOP3", line.name) or any("P" not in name for name in written)
        if only_predicates and not is_predicate:
            break
        if found:
            wide = 1 if is_predicate else 4 if ".128" in line.name or "MMA" in line.name else 2
            narrow = not re.search(r"64|128|WIDE|CS2R|MMA|F2F|D(ADD|MUL|FMA)", line.name) or line.name.startswith("HFMA2")
            written += [f"{found[1]}{int(found[2]) + i}" for i in range(1 if narrow else wide)]
    return written


def _sass_results(line: Instruction, known: Known) -> Known:
    kind, *modifiers = line.name.removeprefix("U").split(".")
    first, *operands = line.operands
    values = [_sass_value(operand, known) for operand in operands]
    if kind == "CS2R" and operands == ["SRZ"]:
        return dict.fromkeys(_sass_written(line)[: 1 if "32" in modifiers else 2], 0)
    if kind == "HFMA2" and operands[:2] == ["-RZ", "RZ"]:
        return {first: _halves(*operands[2:])}
    if kind in ("ISETP", "PLOP3"):
        inputs = values[1:]
    elif kind in ("IADD3", "IADD", "VIADD"):
        inputs = [v for v, operand in zip(values, operands, strict=True) if not re.match(r"!?U?P", operand)]
    else:
        inputs = values[:4] if kind == "LOP3" else values
    if None in inputs or "X" in modifiers or "EX" in modifiers:
        return {}
    known_inputs = [v for v in inputs if v is not None]
    if kind == "MOV":
        return {first: known_inputs[0]}
    if kind in ("IADD3", "IADD", "VIADD"):
        return {first: sum(known_inputs) % WORD}
    if kind == "IMAD" and not {"WIDE", "HI"} & set(modifiers):
        return {first: (known_inputs[0] * known_inputs[1] + known_inputs[2]) % WORD}
    if kind == "SEL":
        return {first: known_inputs[0] if known_inputs[2] else known_inputs[1]}
    if kind == "ISETP":
        a, b = (v if "U32" in modifiers else _signed(v) for v in known_inputs[:2])
        return {first: int(RELATIONS[modifiers[0]](a, b) and bool(known_inputs[2]))} if "AND" in modifiers else {}
    if kind in ("LOP3", "PLOP3"):
        return {first: _looked_up(*known_inputs[:4], 32 if kind == "LOP3" else 1)}
    return {}


def _halves(high: str, low: str) -> int:
    return int.from_bytes(struct.pack("<ee", float(low), float(high)), "little")


def _looked_up(a: int, b: int, c: int, table: int, width: int) -> int:
    """Bit by bit the bit of `table` that a, b and c number."""
    return sum((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(width))


def _signed(value: int) -> int:
    return value - WORD if value >> 31 else value


def _amd_condition(line: Instruction, known: Known) -> int | None:
    if not line.target or line.goes_on is False:
        return 1
    flag, wanted = re.fullmatch(r"s_cbranch_(\w+)(n?z|[01])", line.name).groups()  # type: ignore[union-attr]
    if flag.startswith("exec"):
        return None
    value = _amd_value(flag.removesuffix("n"), known)
    return None if value is None else int(bool(value) == (wanted == "1" or flag.endswith("n")))


def _amd_value(operand: str, known: Known) -> int | None:
    """A scalar's value; of two registers that of both, 0 or all ones."""
    if operand == "exec":
        return WORD - 1  # some lane is on
    if re.fullmatch(r"-?\d+|0x[0-9a-f]+", operand):
        return int(operand, 0) % WORD
    values = {known.get(name) for name in _amd_registers(operand)}
    value = values.pop() if len(values) == 1 else None
    return value if "[" not in operand or value in (0, WORD - 1) else None


def _amd_registers(operand: str) -> list[str]:
    if found := re.fullmatch(r"s\[(\d+):(\d+)\]", operand):
        return [f"s{i}" for i in range(int(found[1]), int(found[2]) + 1)]
    return [operand]


def _amd(line: Instruction, known: Known) -> None:
    """What the line writes is known, or from now on unknown."""
    if not line.operands:
        return
    first, *operands = line.operands
    values = [_amd_value(operand, known) for operand in operands]
    result, condition = None, None
    if line.name.startswith("s_cmp_"):
        compared = _amd_value(first, known), values[0]
        if None not in compared:
            _, _, relation, kind = line.name.split("_")
            a, b = (v if kind == "u32" else _signed(v) for v in compared if v is not None)
            condition = int(RELATIONS[relation](a, b))
    elif line.name.startswith(("s_mov_", "s_movk_")):
        result, condition = values[0], known.get("scc")
    elif line.name.startswith("s_cselect_"):
        condition = known.get("scc")
        result = None if condition is None else values[1 - condition]
    elif line.name in SCALAR and None not in values:
        result = SCALAR[line.name](*values) % WORD  # type: ignore[arg-type]
    elif not line.name.startswith("s_") or line.name.startswith(KEEPS_SCC):
        condition = known.get("scc")
    written = [first] if not re.search(r"_co_|div_scale|mad_[ui]64", line.name) else [first, operands[0]]
    for name in ["scc"] + [r for one in written for r in _amd_registers(one) if not line.name.startswith("s_cmp_")]:
        known.pop(name, None)
    if result is not None:
        known.update(dict.fromkeys(_amd_registers(first), result))
    if condition is not None:
        known["scc"] = condition
