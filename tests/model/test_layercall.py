import pytest
import torch

from hubquant.errors import BadModel
from hubquant.model.layercall import apply_layer


def test_a_layer_that_cannot_be_run_by_itself() -> None:
    """It wants another argument than those that the model was seen to give."""
    with pytest.raises(BadModel, match=r"a layer \(Linear\) cannot be run by itself: .*unexpected keyword argument 'odd'"):
        apply_layer(torch.nn.Linear(4, 4), torch.zeros(1, 2, 4), {"odd": 1})
    with pytest.raises(BadModel, match=r"a layer \(Linear\) cannot be run by itself: mat1 and mat2 shapes"):
        apply_layer(torch.nn.Linear(5, 4), torch.zeros(1, 2, 4), {})
