"""LoRA adapters beside packed weights. PEFT knows gptqmodel's packed linears; when this module is imported it is shown ours."""

import warnings
from typing import Any

from peft.tuners.lora import model as lora
from peft.tuners.lora.gptq import GPTQLoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer

from hubquant.errors import HubquantError
from hubquant.integrations.quantizer import PACKED_LINEARS

_stock = lora.dispatch_gptq


class PackedLora(GPTQLoraLinear):  # type: ignore[misc]
    """An adapter whose base layer is packed: trained, saved and loaded as any other, but never merged."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise HubquantError("an adapter cannot be merged into packed weights: merge it into the base model and quantize that")


def dispatch(target: Any, adapter_name: str, config: Any, **options: Any) -> Any:
    """PEFT's `dispatch_gptq`, which also takes our layers."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if not isinstance(base, PACKED_LINEARS):
        return _stock(target, adapter_name, config=config, **options)
    with warnings.catch_warnings():  # of a layer type it does not know, though it finds the widths
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        return PackedLora(target, adapter_name, config=config, **options)


lora.dispatch_gptq = dispatch
