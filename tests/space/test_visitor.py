"""Who asks: anybody on one's own machine, whoever signed in on a Space."""

import gradio as gr
import pytest
import visitor

from hubquant.bot.job import WATCHER
from hubquant.errors import NotAuthorized


def profile(username: str) -> gr.OAuthProfile:
    return gr.OAuthProfile({"name": "", "preferred_username": username, "profile": "", "picture": ""})


def test_outside_a_space_nobody_signs_in() -> None:
    assert not visitor.must_sign_in()
    assert visitor.name(None) == "anonymous"


@pytest.mark.usefixtures("on_a_space")
def test_on_a_space_one_signs_in() -> None:
    assert visitor.name(profile("ada")) == "@ada"
    assert not visitor.may_ask(None)
    with pytest.raises(NotAuthorized, match="sign in"):
        visitor.name(None)


def test_no_account_passes_for_the_watcher() -> None:
    assert visitor.name(profile(WATCHER)) != WATCHER
