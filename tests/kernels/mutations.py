"""Seeded bugs: each is one line of a kernel changed into a plausible mistake, and the test that must fail for it.

`python tests/kernels/mutate.py [word]` applies them one at a time (all, or those whose file or test contains the word).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """In `file` (below hubquant_kernels) `old`, which stands there exactly once, becomes `new`; then `test` must fail.

    `test` is below tests/kernels/interpreted: "test_hessian.py::test_name" or "test_hessian.py::test_name[case]".
    """

    file: str
    old: str
    new: str
    test: str


MUTATIONS: tuple[Mutation, ...] = ()
