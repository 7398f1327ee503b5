"""Which implementation an operator runs by. What a GPU answers is put in; the rest is as it is."""

import warnings

import pytest
import torch
from hubquant_kernels import dispatch


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is too old (device 0) and one that is not (device 1)."""
    monkeypatch.setattr(torch.cuda, "get_device_name", ["Tesla T4", "NVIDIA L4"].__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_capability", [(7, 5), (8, 9)].__getitem__)
    monkeypatch.setattr(torch.version, "hip", None)
    for cached in (dispatch._obstacle, dispatch._say, dispatch.target):
        cached.cache_clear()


class OnDevice:
    """As much of a tensor as is asked."""

    is_cuda = True

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)


def test_a_cpu_tensor_runs_by_the_definition_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not dispatch.usable(torch.zeros(1))


def test_an_old_gpu_is_named_once_with_what_it_has_and_what_is_needed(gpu: None) -> None:
    with pytest.warns(RuntimeWarning, match=r"Tesla T4 has compute capability 7\.5 and .* need 8\.0"):
        assert not dispatch.usable(OnDevice(0))  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not dispatch.usable(OnDevice(0))  # type: ignore[arg-type]
        assert dispatch.usable(OnDevice(1))  # type: ignore[arg-type]


def test_a_kernel_that_needs_more_says_so(gpu: None) -> None:
    with pytest.warns(RuntimeWarning, match=r"8\.9 and .* need 9\.0"):
        assert not dispatch.usable(OnDevice(1), (9, 0))  # type: ignore[arg-type]


def test_without_triton_the_package_is_named(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="pip install triton"):
        assert not dispatch.usable(OnDevice(1))  # type: ignore[arg-type]


def test_parts_are_named_as_compilers_name_them(gpu: None) -> None:
    assert [dispatch.target(0), dispatch.target(1)] == ["sm_75", "sm_89"]


def test_an_operator_with_a_gpu_implementation_still_runs_by_its_definition_here() -> None:
    @torch.library.custom_op("hubquant_kernels_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    dispatch.on_gpu(twice, "absent")
    assert torch.equal(twice(torch.ones(2)), torch.full((2,), 2.0))
