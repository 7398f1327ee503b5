"""Hidden states in a file are those of a tensor."""

from pathlib import Path

import pytest
import torch

from hubquant.base import open_base
from hubquant.model.hidden import HiddenFile


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_windows_come_back_as_they_were_written(tmp_path: Path, dtype: torch.dtype) -> None:
    states = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    file = HiddenFile(tmp_path / "h", tuple(states.shape), dtype, torch.device("cpu"))
    for number in (2, 0, 3, 1):
        file[number : number + 1] = states[number : number + 1]
    file[1:3] = states[1:3].transpose(1, 2).contiguous().transpose(1, 2)  # whatever its strides
    file.sync()
    assert len(file) == 4 and (tmp_path / "h").stat().st_size == states.nbytes
    again = file.alike(tmp_path / "h")
    assert torch.equal(again[:], states) and torch.equal(again[3:4], states[3:4])


def test_a_layer_runs_from_file_to_file_as_over_a_tensor(bundled: Path, tmp_path: Path) -> None:
    decoder = open_base(bundled).decoder()
    tokens = torch.randint(0, 2048, (3, 16), generator=torch.Generator().manual_seed(0))
    tensor, file = decoder.embed(tokens), decoder.embed_to(tokens, tmp_path / "0")
    assert torch.equal(file[:], tensor)
    after = file.alike(tmp_path / "1")
    with decoder.layer(0) as layer:
        assert decoder.run(0, layer, file, after) is after
        assert torch.equal(file[:], tensor)  # the input is left as it was
        decoder.run(0, layer, tensor)
    assert torch.equal(after[:], tensor)
