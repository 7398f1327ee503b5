"""Who is asking: on a Space whoever signed in with a Hub account, elsewhere anybody."""

import gradio as gr
from gradio.utils import get_space

from hubquant.errors import NotAuthorized

ANONYMOUS = "anonymous"


def must_sign_in() -> bool:
    """On a Space: strangers see the page there, and a request costs hours of somebody's machine."""
    return get_space() is not None


def may_ask(profile: gr.OAuthProfile | None) -> bool:
    return profile is not None or not must_sign_in()


def name(profile: gr.OAuthProfile | None) -> str:
    """For `requested_by`. The @ keeps an account from passing for the watcher or for nobody.

    Raises NotAuthorized for a visitor who may not ask.
    """
    if not may_ask(profile):
        raise NotAuthorized("sign in with your Hugging Face account to ask for a model")
    return f"@{profile.username}" if profile is not None else ANONYMOUS
