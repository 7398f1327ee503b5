"""The package gguf's map from Hugging Face's names of tensors to GGUF's."""

import gguf


class TensorNames(gguf.TensorNameMap):  # type: ignore[misc]
    """gguf writes what one architecture (Arctic) calls its tensors into the table that every later map is made from; here into
    a copy."""

    def __init__(self, arch: gguf.MODEL_ARCH, n_layer: int) -> None:
        self.block_mappings_cfg = dict(gguf.TensorNameMap.block_mappings_cfg)
        super().__init__(arch, n_layer)
