"""What hubquant adds to other libraries. transformers' models come first: their import asks for our loaders, which need them."""

import transformers.modeling_utils  # noqa: F401
