"""The Hub repository's tree, loaded by the `kernels` library itself, and the wheel: the same files."""

import ast
import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hatchling.builders.wheel import WheelBuilder
from hubquant_kernels.int4_matmul import dequantize_awq
from hubquant_kernels.pack import pack_words
from kernels._rust import Digest, DigestAlgorithm, Metadata
from torch import Tensor, nn

import kernels  # not in kernels/tests: there pytest gives this name to the folder

KERNELS = Path(__file__).parents[3] / "kernels"
PACKAGE = KERNELS / "torch-ext" / "hubquant_kernels"
ALLOWED = {"torch", "triton", *sys.stdlib_module_names}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("build_noarch", KERNELS / "build_noarch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("repository")
    assert [p.name for p in module.build(folder)] == ["torch-cuda", "torch-rocm", "torch-xpu", "torch-cpu"]
    return folder


@pytest.fixture(scope="module")
def loaded(repository: Path) -> ModuleType:
    return kernels.get_local_kernel(repository)


def sources() -> set[str]:
    return {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*") if p.suffix in (".py", ".cpp", ".h")}


@pytest.mark.parametrize("backend", ["cuda", "rocm", "xpu", "cpu"])
def test_each_backend_has_all_files_and_their_digests(repository: Path, backend: str) -> None:
    folder = repository / "build" / f"torch-{backend}"
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == sources() | {"metadata.json"}
    metadata = Metadata.read_from_file(folder / "metadata.json")
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, folder))
    assert str(metadata.backend.backend_type).lower() == backend
    assert (metadata.version, metadata.license, metadata.python_depends) == (1, "Apache-2.0", [])


def test_operators_of_a_loaded_build_are_its_own(loaded: ModuleType) -> None:
    codes = torch.arange(16, dtype=torch.uint8).view(1, 16)
    assert torch.equal(loaded.pack.pack_words(codes, 4), pack_words(codes, 4))
    assert loaded.pack.pack_words is not pack_words
    assert loaded.__name__.startswith("hubquant_kernels_cpu_")


def test_every_public_module_is_there(loaded: ModuleType) -> None:
    assert all(isinstance(getattr(loaded, name), ModuleType) for name in loaded.__all__)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = loaded.absent


def test_a_repository_by_name_is_taken_from_local_kernels(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_KERNELS", f"hubquant/hubquant-kernels={repository}")
    kernel = kernels.get_kernel("hubquant/hubquant-kernels", version=1, trust_remote_code=True)
    assert torch.equal(kernel.grid.group_range(torch.ones(1, 4), 4, False)[1], torch.zeros(1, 1))


def test_kernelize_swaps_a_linears_forward(repository: Path) -> None:
    """The class that is replaced decodes with a bug: after the swap its output is right."""

    @kernels.use_kernel_forward_from_hub("AwqLinear")
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            random = torch.Generator().manual_seed(0)
            self.register_buffer("qweight", torch.randint(-(2**31), 2**31, (32, 2), generator=random).int())
            self.register_buffer("qzeros", torch.randint(-(2**31), 2**31, (1, 2), generator=random).int())
            self.register_buffer("scales", torch.rand(1, 16, generator=random).half())
            self.bias = None

        def forward(self, x: Tensor) -> Tensor:
            return x[..., :16] * 0

    model, x = nn.Sequential(Linear()), torch.eye(32)
    repo = kernels.LocalLayerRepository(repository, layer_name="AwqForward")
    with kernels.use_kernel_mapping({"AwqLinear": {"cpu": repo}}, inherit_mapping=False):
        kernels.kernelize(model, mode=kernels.Mode.INFERENCE, device="cpu")
    linear = model[0]
    # one product of each row is not zero, so the sums are exact; decoding rounds once
    assert torch.allclose(model(x), dequantize_awq(linear.qweight, linear.qzeros, linear.scales).T, rtol=2.0**-23)


def test_the_package_imports_torch_triton_and_the_standard_library_only() -> None:
    """It is loaded outside sys.path, in several versions at once: imports of itself are relative."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            else:
                continue
            assert {name.split(".")[0] for name in names} <= ALLOWED, f"{path.name} imports {names}"


def test_the_wheel_carries_the_same_files(tmp_path: Path) -> None:
    (built,) = WheelBuilder(str(KERNELS.parent)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        packed = {
            n.removeprefix("hubquant_kernels/"): archive.read(n) for n in archive.namelist() if n.startswith("hubquant_kernels/")
        }
        benchmarks = {n for n in archive.namelist() if n.startswith("hubquant/kernelbenchmarks/")}
    assert packed == {name: (PACKAGE / name).read_bytes() for name in sources()}
    assert {Path(n).name for n in benchmarks} == {p.name for p in (KERNELS / "benchmarks").glob("*.py")}
