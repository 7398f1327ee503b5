from pathlib import Path

import pytest

from hubquant.hub.frontmatter import front_matter, front_matter_of


def test_a_block_is_read() -> None:
    assert front_matter("---\nlicense: mit\ntags: [a]\n---\n# Title\n") == {"license": "mit", "tags": ["a"]}
    assert front_matter("\ufeff---\r\nlicense: mit\r\n---\r\n") == {"license": "mit"}


@pytest.mark.parametrize(
    "text",
    [
        "", "# Title", "---\nlicense: mit\n", "---\n- a\n---\n", "---\na: [\n---\n", "---\nwhen: 2026-99-99\n---\n",
        "---\na: !!python/object/apply:os.system [ls]\n---\n", f"---\na: {'[' * 5000}\n---\n",
    ],
)  # fmt: skip
def test_anything_else_is_empty(text: str) -> None:
    assert front_matter(text) == {}


def test_a_folder_without_a_card_and_a_card_that_is_not_text(tmp_path: Path) -> None:
    assert front_matter_of(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert front_matter_of(tmp_path) == {"license": "\ufffd"}
