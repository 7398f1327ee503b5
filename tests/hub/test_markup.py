import jinja2
import pytest

from hubquant.hub.markup import Markup, code, escape, join_cells, link, render, verbatim


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tiny-llama_x Q4_K_M", "tiny-llama_x Q4_K_M"),
        ("a|b", r"a\|b"),
        ("a\n# b\r\n", r"a \# b"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("&lt;", "&amp;lt;"),
        ("[x](javascript:y)", r"\[x\](javascript:y)"),
        ("*b* _i_ `c` ~s~ !", r"\*b\* \_i\_ \`c\` \~s\~ \!"),
        ("https://evil.example", "https&#58;//evil.example"),
        ("a\u202eb\x00", "ab"),
        (r"\|", r"\\\|"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_escape_is_bounded() -> None:
    assert len(escape("x" * 10_000)) < 310


def test_code_spans_cannot_be_left() -> None:
    assert code("a`|b\n# c") == "`a'b # c`"
    assert "`" not in verbatim("```\nrm -rf\n```")


def test_cells_and_links() -> None:
    assert join_cells(("a|b", 1, Markup("**c**"))) == r"a\|b | 1 | **c**"
    assert link("a]b", "https://h/x") == r"[a\]b](https://h/x)"


def test_a_template_escapes_what_it_is_given_and_misses_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "t.jinja").write_text("{{ a }} {{ b }} {{ a|code }}")
    monkeypatch.setattr("hubquant.hub.markup.resources.files", lambda package: tmp_path)
    assert render("t.jinja", {"a": "*x*", "b": Markup("*y*")}) == r"\*x\* *y* `*x*`"
    with pytest.raises(jinja2.UndefinedError):
        render("t.jinja", {"a": "x"})
