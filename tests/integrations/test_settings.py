"""Which settings each linear gets from a quantization_config."""

from typing import Any

import pytest

from hubquant.errors import BadModel
from hubquant.integrations.settings import AutoRoundConfig, AwqConfig, GPTQConfig

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}
AUTO: dict[str, Any] = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"}


def test_the_first_pattern_that_matches_decides() -> None:
    dynamic = {
        "-:.*\\.layers\\.0\\.": {},
        "+:.*\\.down_proj": {"bits": 8, "group_size": 64, "mse": 2.4},
        ".*\\.(down|up)_proj": {"group_size": 32},
        "lm_head": {"bits": 8},
    }
    config = GPTQConfig(**GPTQ, dynamic=dynamic)

    def found(name: str) -> tuple[int, int]:
        settings = config.of_linear(name)
        return settings["bits"], settings["group_size"]

    assert found("model.layers.0.mlp.down_proj") == (4, 128)
    assert found("model.layers.1.mlp.down_proj") == (8, 64)
    assert found("model.layers.1.mlp.up_proj") == (4, 32)
    assert found("model.layers.1.mlp.gate_proj") == (4, 128)
    assert found("lm_head") == (8, 128)
    assert found("model.lm_head") == (4, 128)  # a pattern starts where the name does, as in GPTQModel
    assert "mse" not in config.of_linear("model.layers.1.mlp.down_proj")


def test_what_is_saved_is_what_was_read() -> None:
    block = GPTQ | {"dynamic": {"-:x": {}}, "meta": {"quantizer": ["some:1.0"]}, "unknown": [1]}
    assert GPTQConfig(**block).to_dict() == block
    assert AwqConfig.from_dict(GPTQ | {"quant_method": "awq"}).to_dict() == GPTQ | {"quant_method": "awq"}


@pytest.mark.parametrize(
    ("packing", "method", "layout"),
    [
        ("auto_round:auto_gptq", "gptq", {"checkpoint_format": "gptq"}),
        ("auto_round:gptqmodel", "gptq", {"checkpoint_format": "gptq_v2"}),
        ("auto_round", "gptq", {"checkpoint_format": "gptq_v2"}),
        ("auto_round:auto_awq", "awq", {"version": "gemm"}),
    ],
)
def test_auto_rounds_packings_are_the_two_formats(packing: str, method: str, layout: dict[str, str]) -> None:
    """Zeros are shifted by one in its auto_gptq packing alone (auto_round/inference/backend.py)."""
    config = AutoRoundConfig(**AUTO, packing_format=packing)
    assert config.of_linear("x") == AUTO | {"packing_format": packing, "quant_method": method} | layout
    assert config.packs_as_awq == (method == "awq")
    assert config.to_dict() == AUTO | {"packing_format": packing}


def test_auto_rounds_own_overrides() -> None:
    extra = {"model.layers.0.mlp.up_proj": {"bits": 8}, ".*layers\\.1\\..*": {"group_size": 32, "bits": 2, "data_type": "int"}}
    config = AutoRoundConfig(**AUTO, extra_config=extra)
    assert config.of_linear("model.layers.0.mlp.up_proj")["bits"] == 8
    assert config.of_linear("model.layers.1.mlp.up_proj")["group_size"] == 32
    assert config.of_linear("model.layers.2.mlp.up_proj")["bits"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"packing_format": "auto_round:llm_compressor"},
            "is 'auto_round:llm_compressor'; hubquant reads auto_round",
        ),
        ({"data_type": "mx_fp"}, "data_type 'mx_fp' and act_bits None; hubquant reads weights in integers"),
        ({"act_bits": 8}, "act_bits 8; hubquant reads"),
        ({"bits": 5}, "bits is 5; hubquant reads 2, 3, 4, 8"),
    ],
)
def test_what_auto_round_writes_beside_integers_is_declined(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadModel, match=message):
        AutoRoundConfig(**(AUTO | change))
