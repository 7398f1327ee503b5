"""A person at the page: checks a model, asks for it, watches its job while a worker makes it, finds it published."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import as_file, files
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi

from hubquant.hub.local.server import LocalHub

pytest.importorskip("selenium", reason="needs the package selenium (pip install 'hubquant[dev]')")

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
LOCAL_SCHEMES = ("data", "blob", "chrome", "chrome-untrusted", "devtools", "about")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium chromium-driver)"
)
SPACE = Path(__file__).parents[2] / "space"
BASE, VARIANT = "demo-org/tiny-llama", "gguf-q8_0"
TEXT = ".note, .small, .list th, .list td, .list a, .state, .facts dt, .facts dd, #head p, #head a, button[role=tab]"
READABLE = 4.5  # WCAG 2.2, level AA
CONFIG = """
state = "{state}"
endpoint = "{endpoint}"
[watch]
models = ["demo-org/not-there-yet"]
[recipe]
variants = ["{variant}"]
calibration = {{ windows = 1, window = 128 }}
evaluation = {{ max_tokens = 1024 }}
[publish]
namespace = "demo-bot"
"""
T = TypeVar("T")


@pytest.fixture
def environment(local_hub: LocalHub, tmp_path: Path) -> dict[str, str]:
    """Of page and worker: a config for the local Hub, which has the bundled model; one thread; a free port."""
    org = HfApi(endpoint=local_hub.url, token="hf_demo_org")
    org.create_repo(BASE)
    with as_file(files("hubquant.demo") / "data" / "model") as folder:
        org.upload_folder(repo_id=BASE, folder_path=folder)
    config = tmp_path / "hubquant.toml"
    config.write_text(CONFIG.format(state=tmp_path / "state", endpoint=local_hub.url, variant=VARIANT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        **os.environ,
        "HUBQUANT_CONFIG": str(config),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_ENDPOINT": local_hub.url,
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def page(environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The address of `python space/app.py`."""
    address = f"http://127.0.0.1:{environment['GRADIO_SERVER_PORT']}/"
    with (tmp_path / "page.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, SPACE / "app.py"], env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        wait(lambda: process.poll() is not None or _answers(address), 90)
        assert process.poll() is None, (tmp_path / "page.log").read_text()
        yield address
        assert "Traceback" not in (tmp_path / "page.log").read_text()
    finally:
        process.terminate()
        process.wait(30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait(look: Callable[[], T], seconds: float = 30) -> T:
    """The first true answer; the page replaces elements while it is read."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(NoSuchElementException, StaleElementReferenceException):
            if found := look():
                return found
        time.sleep(0.1)
    raise TimeoutError(f"not seen within {seconds} s")


class Visitor:
    """What a person does and sees."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, theme: str = "light") -> None:
        self.driver.get(f"{self.address}?__theme={theme}")
        wait(lambda: self.one("#model textarea, #model input").is_displayed())

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def tab(self, name: str) -> None:
        tabs = self.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]")
        next(tab for tab in tabs if tab.text == name and tab.is_displayed()).click()

    def check(self, model: str, says: str) -> str:
        box = self.one("#model textarea, #model input")
        box.clear()
        box.send_keys(model)
        self.one("#check").click()
        return wait(lambda: says in self.one("#preview").text and self.one("#preview").text)

    def state(self) -> str:
        return self.one("#jobs .state").text

    def readable(self) -> None:
        found = contrasts(self.driver, TEXT)
        assert found
        assert [(round(ratio, 1), text) for ratio, text in found if ratio < READABLE] == []
        width = self.driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0, "one scrolls up and down only"


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """`profile`: a fresh folder for everything that the browser stores."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to be sandboxed as root
    for flag in (*FLAGS, *root, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def hosts(driver: webdriver.Chrome) -> set[str]:
    """Every host that was asked for anything since the last call."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    urls = (m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent")
    return {urlsplit(url).hostname or url for url in urls if urlsplit(url).scheme not in LOCAL_SCHEMES}


def be_a_phone(driver: webdriver.Chrome, width: int = 390, height: int = 844) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


# WCAG 2.2: relative luminance of the text and of the first opaque background behind it
CONTRAST = """
const parse = (text) => text.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const color = parse(getComputedStyle(element).backgroundColor);
    if (color.length < 4 || color[3] === 1) return color;
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll(arguments[0])].filter((e) => e.offsetParent && e.textContent.trim()).map((e) => {
  const [a, b] = [luminance(parse(getComputedStyle(e).color)), luminance(behind(e))];
  return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.trim().slice(0, 40)];
});
"""


def contrasts(driver: webdriver.Chrome, selector: str) -> list[tuple[float, str]]:
    """(contrast ratio, text) of every visible element with text that the selector finds."""
    return [(ratio, text) for ratio, text in driver.execute_script(CONTRAST, selector)]


def test_from_a_wish_to_a_published_repo(page: str, environment: dict[str, str], tmp_path: Path, local_hub: LocalHub) -> None:
    with chromium(tmp_path / "profile") as driver:
        visitor = Visitor(driver, page)
        visitor.open()
        odd = "{{value}}${1+1}<b>x</b>"
        assert odd in visitor.check(odd, says="is not the id of a repo"), "what somebody typed is shown, not obeyed"

        assert "about 3.9 MB" in visitor.check(BASE, says="admitted: 1 variant to make")
        visitor.readable()
        visitor.one("#request").click()
        wait(lambda: "in the queue as job" in visitor.one("#preview").text)
        visitor.tab("Queue")
        wait(lambda: visitor.state() == "queued")

        worker_environment = {**environment, "HF_TOKEN": "hf_demo_bot"}
        command = [sys.executable, "-m", "hubquant", "run", "--once", "--config", environment["HUBQUANT_CONFIG"]]
        with (
            (tmp_path / "worker.log").open("wb") as log,
            subprocess.Popen(command, env=worker_environment, stdout=log, stderr=log) as worker,
        ):
            wait(lambda: visitor.state() == "running" and "layers" in visitor.one("#jobs").text, 60)
            wait(lambda: visitor.state() == "done", 90)
            assert worker.wait(30) == 0, (tmp_path / "worker.log").read_text()
        link = visitor.one("#jobs td[data-label=result] a")
        assert (link.text, link.get_attribute("href")) == ("demo-bot/tiny-llama-GGUF", f"{local_hub.url}/demo-bot/tiny-llama-GGUF")

        visitor.tab("Published")
        row = wait(lambda: visitor.one("#repos tbody tr").text)
        assert VARIANT in row
        assert "demo-bot/tiny-llama-GGUF" in row
        assert "Measured under gptq-512" in visitor.one("#repos").text

        be_a_phone(driver)
        for theme in ("light", "dark"):
            visitor.open(theme)
            visitor.check(BASE, says="up to date")
            visitor.readable()
            for tab, shown in (("Queue", "#jobs .state"), ("Published", "#repos tbody tr")):
                visitor.tab(tab)
                wait(lambda shown=shown: visitor.one(shown).is_displayed())
                visitor.readable()
        assert hosts(driver) == {"127.0.0.1"}
        assert [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
