"""The web page: ask for variants of a model, watch the queue, see what is published. The tabs call what the command line calls."""

import os
import sys
from pathlib import Path

import gradio as gr
from tabs import published, queue, request
from view import HERE, render
from visitor import must_sign_in

from hubquant.config import Settings
from hubquant.errors import HubquantError, UsageError
from hubquant.hub.client import Hub
from hubquant.hub.retry import Retry

REFRESH_SECONDS = 2
# A person waits: one more attempt, and no wait of minutes because a busy Hub asks for it.
IMPATIENT = Retry(attempts=2, base_seconds=0.5, max_asked_seconds=5.0)

SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")  # nothing to fetch


def build(settings: Settings) -> gr.Blocks:
    """The page for these settings. It puts jobs in the queue and reads it; working it is the business of `hubquant run`.

    Raises UsageError if there is nowhere to publish to.
    """
    namespace = settings.publish.namespace
    if not namespace:
        raise UsageError("no namespace to publish to; set publish.namespace in hubquant.toml")
    asking = Hub(settings.endpoint, retry=IMPATIENT)
    looking = Hub(settings.endpoint, token=False, retry=IMPATIENT)  # visitors see what the public sees
    with gr.Blocks(title="hubquant", analytics_enabled=False) as page:
        with gr.Row(elem_id="head"):
            gr.HTML(render("head", namespace=namespace, endpoint=looking.endpoint), apply_default_css=False, min_width=300)
            if must_sign_in():
                gr.LoginButton(size="md", scale=0, min_width=280)
        with gr.Tabs():
            with gr.Tab("Request", id="request"):
                request.tab(settings, asking)
            with gr.Tab("Queue", id="queue"):
                jobs = gr.HTML(elem_id="jobs", apply_default_css=False)
            with gr.Tab("Published", id="published"):
                repos = gr.HTML(elem_id="repos", apply_default_css=False)
        ticks = [page.load, gr.Timer(REFRESH_SECONDS).tick]
        for shown, look in ((jobs, queue.tab(settings, looking.endpoint)), (repos, published.tab(looking, namespace))):
            gr.on(ticks, look, None, shown, queue=False, show_progress="hidden", api_visibility="private")
    return page


def _theme() -> gr.themes.Base:
    """Gradio's own with the reader's system font and darker buttons, on which white text is readable."""
    theme = gr.themes.Default(primary_hue="teal", secondary_hue="teal", font=SYSTEM_FONTS)
    fills = {"button_primary_background_fill": "*primary_700", "button_primary_background_fill_hover": "*primary_800"}
    return theme.set(**fills, **{f"{name}_dark": fill for name, fill in fills.items()})


def main() -> None:
    """Settings from HUBQUANT_CONFIG, by default hubquant.toml in the current folder; where to listen from gradio's own
    GRADIO_SERVER_NAME and GRADIO_SERVER_PORT."""
    try:
        page = build(Settings.read(Path(os.environ.get("HUBQUANT_CONFIG", "hubquant.toml"))))
    except HubquantError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    page.launch(
        share=False, theme=_theme(), css_paths=HERE / "style.css", footer_links=[], run_history=False, enable_monitoring=False
    )


if __name__ == "__main__":
    main()
