"""The id decides what "the same work" is."""

from hubquant.artifact import Base
from hubquant.bot.job import Job
from hubquant.recipe import Calibration, Recipe

BASE = Base(repo_id="org/model", revision="a" * 40, fingerprint="f" * 64, parameters=7)
JOB = Job(base=BASE, recipe=Recipe(), namespace="bot")


def test_a_changed_readme_or_another_asker_is_the_same_job() -> None:
    readme = BASE.model_copy(update={"revision": "b" * 40})
    assert Job(base=readme, recipe=Recipe(), namespace="bot", requested_by="ada").id == JOB.id
    assert len(JOB.id) == 32
    assert int(JOB.id, 16)


def test_weights_recipe_version_and_namespace_make_another_job() -> None:
    others = [
        JOB.model_copy(update={"base": BASE.model_copy(update={"fingerprint": "0" * 64})}),
        JOB.model_copy(update={"base": BASE.model_copy(update={"repo_id": "org/other"})}),
        JOB.model_copy(update={"recipe": Recipe(calibration=Calibration(windows=8))}),
        JOB.model_copy(update={"hubquant_version": "99.0.0"}),
        JOB.model_copy(update={"namespace": "elsewhere"}),
    ]
    assert len({JOB.id, *(job.id for job in others)}) == 1 + len(others)


def test_json_travels_and_is_canonical() -> None:
    text = JOB.canonical_json()
    assert Job.read(text) == JOB
    assert Job.read(text).canonical_json() == text


def test_people_go_first() -> None:
    assert JOB.model_copy(update={"requested_by": "ada"}).priority < JOB.priority
