from pathlib import Path

from hubquant.formats.gguf.chattemplate import chat_template_values


def test_chat_templates(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "D"}, {"name": "tool-use", "template": "T"}]
    assert chat_template_values(tmp_path, {"chat_template": named}) == {
        "tokenizer.chat_template": "D",
        "tokenizer.chat_template.tool_use": "T",
        "tokenizer.chat_templates": ["tool_use"],
    }
    assert chat_template_values(tmp_path, {}) == {}


def test_files_go_before_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    assert chat_template_values(tmp_path, {"chat_template": "old"}) == {
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.rag": "{{ documents }}",
        "tokenizer.chat_templates": ["rag"],
    }
