from pathlib import Path

import pytest

from hubquant.config import Settings
from hubquant.errors import UsageError

WHOLE = """
state = "/var/lib/hubquant"
[watch]
organisations = ["org"]
[policy]
licenses = ["mit"]
max_parameters = 8_000_000_000
[recipe]
variants = ["gguf-q4_k_m"]
[recipe.calibration]
windows = 16
[recipe.limits.4]
perplexity_ratio = 1.1
mean_kl = 0.1
top1_agreement = 0.8
[publish]
namespace = "me"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hubquant.toml"
    path.write_text(text)
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    settings = Settings.read(written(tmp_path, WHOLE))
    assert settings.watch.organisations == ("org",) and settings.policy.licenses == ("mit",)
    assert settings.recipe.variants == ("gguf-q4_k_m",) and settings.recipe.calibration.windows == 16
    assert settings.recipe.limits[4].mean_kl == 0.1 and settings.publish.namespace == "me"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[watch", "not valid TOML"),
        ("[watch]\norganizations = ['x']", "watch.organizations: Extra inputs are not permitted"),
        ("[recipe.calibration]\nwindows = 0", "recipe.calibration.windows: .* greater than or equal to 1"),
        ("[recipe]\nvariants = 'all'", "recipe.variants"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=f"hubquant.toml.*{sentence}"):
        Settings.read(written(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--config"):
        Settings.read(tmp_path / "none.toml")
