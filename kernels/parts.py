"""The GPUs that the kernels are compiled for, one for each target: what they can do at best, from their data sheets."""

from dataclasses import dataclass

KIB = 1024


@dataclass(frozen=True)
class Part:
    """Peak rates of one GPU. An SM (a compute unit, on AMD) issues four instructions of a warp (a wave) per cycle.

    `clock`: boost, Hz; `bandwidth`: memory, bytes per second; `tensor`: fp16 with float32 sums, dense, operations per
    second; `shared`: bytes of shared memory that one program may have.
    """

    name: str
    sms: int
    clock: float
    bandwidth: float
    tensor: float
    shared: int

    @property
    def issue(self) -> float:
        """Instructions of a warp (a wave) per second."""
        return 4 * self.sms * self.clock


PARTS: dict[str, Part] = {
    "sm_80": Part("A100 80 GB", 108, 1.410e9, 2.039e12, 312e12, 163 * KIB),
    "sm_86": Part("A10", 72, 1.695e9, 0.600e12, 125e12, 99 * KIB),
    "sm_89": Part("L4", 58, 2.040e9, 0.300e12, 121e12, 99 * KIB),
    "sm_90": Part("H100 SXM", 132, 1.755e9, 3.350e12, 989e12, 227 * KIB),
    "sm_100": Part("B200", 148, 1.850e9, 8.000e12, 2250e12, 227 * KIB),
    "sm_120": Part("RTX 5090", 170, 2.407e9, 1.792e12, 209e12, 99 * KIB),
    "gfx942": Part("MI300X", 304, 2.100e9, 5.300e12, 1307e12, 64 * KIB),
}
