"""llama.cpp's own converter, which refuses a tokenizer that it has no name for: such a one is taken for GPT-2's, as the small
models' is. `run_llamacpp.py LLAMA_CPP MODEL --outtype f32 --outfile FILE`; that the tokens are the same is checked afterwards."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    source = Path(sys.argv.pop(1))
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def named(self, tokenizer):
        try:
            return known(self, tokenizer)
        except NotImplementedError:
            return "gpt-2"

    TextModel.get_vocab_base_pre = named
    runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")
