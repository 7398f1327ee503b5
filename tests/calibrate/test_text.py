from pathlib import Path

import pytest
import torch

from hubquant.calibrate.source import BUNDLED, read_text, text_name, text_sha256, with_texts
from hubquant.calibrate.text import calibration_windows, load_tokenizer, tokenize
from hubquant.errors import BadModel, UsageError
from hubquant.recipe import Calibration, Recipe


def test_the_bundled_texts_have_no_passage_in_common() -> None:
    calibration, evaluation = (read_text(name).split() for name in BUNDLED)
    runs = {tuple(calibration[i : i + 12]) for i in range(len(calibration) - 12)}
    assert not any(tuple(evaluation[i : i + 12]) in runs for i in range(len(evaluation) - 12))


def test_a_file_is_a_text_and_its_card_shows_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("words", encoding="utf-8")
    assert read_text(str(path)) == "words" and text_name(str(path)) == "mine.txt"


@pytest.mark.parametrize(("content", "sentence"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe", "not UTF-8")])
def test_texts_that_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        read_text(str(path))


def test_a_text_that_is_not_there_names_the_bundled_ones() -> None:
    with pytest.raises(UsageError, match="prose-calib"):
        read_text("no-such-text")


def test_the_recipe_hash_stands_for_the_text(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    hashes = set()
    for content in ("one", "two"):
        path.write_text(content)
        hashes.add(with_texts(Recipe(calibration=Calibration(source=str(path)))).sha256)
    assert len(hashes) == 2
    assert with_texts(Recipe()).calibration.text_sha256 == text_sha256("prose-calib")


def test_windows_are_spread_over_the_text_and_are_the_same_each_time() -> None:
    tokens = torch.arange(1000)
    windows = calibration_windows(tokens, 4, 100)
    assert windows[:, 0].tolist() == [0, 300, 600, 900]
    assert bool((windows[:, 1:] - windows[:, :-1] == 1).all())
    assert torch.equal(windows, calibration_windows(tokens, 4, 100))
    assert calibration_windows(tokens, 1, 1000).shape == (1, 1000)


def test_a_text_shorter_than_a_window() -> None:
    with pytest.raises(UsageError, match="99 tokens, fewer than one window of 100"):
        calibration_windows(torch.arange(99), 1, 100)


def test_tokenizers(bundled: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(bundled)
    assert tokenizer.decode(tokenize(tokenizer, "Call me Ishmael.")) == "Call me Ishmael."
    with pytest.raises(BadModel, match="has no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BadModel, match="cannot be loaded"):
        load_tokenizer(tmp_path)
