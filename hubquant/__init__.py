"""Quantized models, made in one pass, measured, published.

Importing hubquant imports neither torch nor transformers; once transformers is imported, `from_pretrained` loads GPTQ, AWQ
and GGUF repos with hubquant's kernels (see hubquant.integrations.transformers; `hubquant.restore()` undoes it).
"""

from hubquant.hook import after_import

__version__ = "0.1.0"


def _install() -> None:
    import hubquant.integrations.transformers  # noqa: F401 (puts our loaders in place)


def _install_adapters() -> None:
    import hubquant.integrations.peft  # noqa: F401


def restore() -> None:
    """Give `from_pretrained` transformers' own GPTQ, AWQ and GGUF loaders back."""
    from hubquant.integrations.transformers import restore

    restore()


after_import("transformers.modeling_utils", _install)
after_import("peft.tuners.lora.model", _install_adapters)
