"""Presets and configuration files of strangers: nothing of the environment gets into a run, none fills the memory."""

from pathlib import Path

import pytest
import yaml

from simzss.errors import ConfigError
from simzss.settings.compose import compose, user_presets
from simzss.settings.read_yaml import read_yaml
from tests.support.memory import peak_of

pytestmark = pytest.mark.hostile

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
DEEP = f"a: {'[' * 5000}{']' * 5000}\n"
OBJECT = "a: !!python/object/apply:os.system [touch trace]\n"


@pytest.fixture
def conf(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own/experiment").mkdir(parents=True)
    return Path("own")


def composed(way: str, conf: Path, text: str, override: str = "") -> None:
    """Compose with a text in the place that `way` says."""
    (conf / "config.yaml" if way == "config" else conf / "experiment" / "own.yaml").write_text(text, encoding="utf-8")
    overrides = ["backbone=dinov2_vits14_reg4", *{"preset": ["experiment=own"], "override": [override]}.get(way, [])]
    with user_presets(conf if way == "preset" else None):
        compose("train", overrides, conf / "config.yaml" if way == "config" else None)


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "x ${oc.env:SECRET}", "${oc.${z}:SECRET}", "${oc.decode:1}"])
@pytest.mark.parametrize("way", ["override", "config", "preset"])
def test_environment_is_not_read(conf, monkeypatch, value, way):
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(ConfigError) as caught:
        composed(way, conf, f"# @package _global_\ndata:\n  shards: '{value}'\nz: env\n", f"data.shards={value}")
    assert "data.shards=" in str(caught.value) and "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", [LAUGHS, DEEP, OBJECT], ids=["laughs", "deep", "object"])
@pytest.mark.parametrize("way", ["config", "preset", "text"])
def test_bombs_and_objects_are_refused(conf, text, way):
    def read() -> None:
        if way == "text":
            with pytest.raises(yaml.YAMLError):
                read_yaml(text)
            return
        with pytest.raises(ConfigError) as caught:
            composed(way, conf, text)
        assert "\n" not in str(caught.value) and ".yaml" in str(caught.value)

    assert peak_of(read) < 200 << 20
    assert not Path("trace").exists()
