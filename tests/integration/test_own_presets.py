"""A user's own benchmark, backbone, experiment and bank, from a folder of theirs, without touching the package."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from simzss.cli import dispatch
from simzss.errors import ConfigError
from tests.support.program import ROOT

LEGACY = ROOT / "tests" / "legacy"
PRESETS = {
    "backbone/mine.yaml": "name: tiny_vit\ntimm_name: test_vit.r160_in1k\nimage_size: 64\nweights: backbone\n",
    "benchmark/garden.yaml": "name: garden\nimages: photos\nmasks: labels\nimage_suffix: .png\n"
    "classes: [sky, grass/lawn]\nbackground: {kind: threshold, threshold: 0.4}\n",
    "concepts/few.yaml": "bank: banks/few.txt\n",
    "banks/few.txt": "ball\ngrass, lawn\nsky\n",
    "experiment/garden.yaml": """# @package _global_
defaults:
  - override /backbone: mine
  - override /text: pretrained
  - override /concepts: few
  - override /data: cached
text: {weights: text, trainable_layers: 1, context_length: 32}
data: {shards: shards/*.tar, batch_size: 4, num_workers: 0, norm_images: 4}
trainer: {accelerator: cpu, devices: 1, precision: 32-true, epochs: 1, progress_bar: false}
validation: {benchmark: garden, root: garden, limit: 2}
""",
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder with shards and weights, ten photos with masks, and presets in `conf`; the current folder."""
    for name in ("shards", "backbone", "text"):
        shutil.copytree(LEGACY / name, tmp_path / name)
    for name, text in PRESETS.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / name).write_text(text, encoding="utf-8")
    draw = np.random.default_rng(0)
    for folder in ("photos", "labels"):
        (tmp_path / "garden" / folder).mkdir(parents=True)
    for number in range(10):
        labels = np.zeros((48, 64), np.uint8)
        labels[:20], labels[30:] = 1, 2
        colours = np.array([[90, 60, 30], [110, 160, 250], [40, 150, 50]])[labels] + draw.integers(-20, 20, (48, 64, 3))
        Image.fromarray(colours.clip(0, 255).astype(np.uint8)).save(tmp_path / "garden" / "photos" / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / "garden" / "labels" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_copy_edit_run_measure(home, capsys):
    dispatch(["config", "copy", "train", "mine.yaml", "experiment=garden", "output_dir=first"])
    mine = yaml.safe_load(Path("mine.yaml").read_text(encoding="utf-8"))
    assert (mine["backbone"]["name"], mine["concepts"]["bank"]) == ("tiny_vit", "banks/few.txt")
    mine["trainer"]["epochs"] = 2
    Path("mine.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
    dispatch(["train", "--config", "mine.yaml"])
    written = yaml.safe_load(Path("first/config.yaml").read_text(encoding="utf-8"))
    assert written["trainer"]["epochs"] == 2
    assert "val/miou/garden" in Path("first/metrics.csv").read_text(encoding="utf-8").splitlines()[0]

    dispatch(["train", "config=first/config.yaml", "output_dir=second"])
    for name in ("model.safetensors", "config.json"):
        assert Path("first/model", name).read_bytes() == Path("second/model", name).read_bytes()

    dispatch(["eval", "model=first/model", "benchmark=garden", "benchmark.root=garden", "precision=32-true",
              "overlays=2", "num_workers=0", "output_dir=measured"])  # fmt: skip
    result = json.loads(Path("measured/results.json").read_text(encoding="utf-8"))["garden"]
    assert result["images"] == 10 and list(result["per_class"]) == ["background", "sky", "grass"]
    assert "garden: mIoU" in capsys.readouterr().out


def test_presets_elsewhere_are_named(home, capsys):
    Path("conf").rename("presets")
    with pytest.raises(ConfigError, match="benchmark=garden is unknown"):
        dispatch(["config", "validate", "eval", "benchmark=garden", "benchmark.root=garden", "model=m"])
    dispatch(["config", "validate", "eval", "benchmark=garden", "benchmark.root=garden", "model=m", "conf_dir=presets"])
    assert capsys.readouterr().out == "valid\n"
