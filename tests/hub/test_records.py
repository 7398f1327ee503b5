from pathlib import Path

from hubquant.hub.records import Records


def test_a_repo_is_begun_then_finished_and_others_are_not(tmp_path: Path) -> None:
    records = Records(tmp_path / "published")
    assert not records.begun("bot/a") and not records.finished("bot/a")
    records.begin("bot/a")
    assert records.begun("bot/a") and not records.finished("bot/a")
    records.finish("bot/a", "c" * 40)
    records.begin("bot/a")  # a later begin does not undo it
    assert records.finished("bot/a")
    assert not records.begun("bot/b")


def test_records_outlive_the_process_and_can_be_deleted(tmp_path: Path) -> None:
    Records(tmp_path).finish("bot/a", "c" * 40)
    records = Records(tmp_path)
    assert records.finished("bot/a")
    assert [path.name for path in tmp_path.iterdir()] == ["bot--a.json"]
    records.path("bot/a").unlink()
    assert not records.begun("bot/a")
