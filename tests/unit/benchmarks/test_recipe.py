"""The script of the whole run at its smallest, and its choice of what fits into memory."""

import json

import pytest

from benchmarks import floors
from benchmarks.memory_model import choose_micro_batch
from benchmarks.recipe import Recipe, RecipeSettings
from tests.support.models import refused

TOWER = floors.Text(floors.Blocks(12, 512, 2048), 49408, 77, 768)
GB = 10**9
IMAGE = 257 * 768 * 2  # bytes of an image's features
WHOLE_SET = {"bfloat16": 46.5 * GB, "int8": 23.3 * GB}


@pytest.mark.slow
def test_whole_run(tmp_path):
    settings = RecipeSettings(
        images=24,
        batch=8,
        samples=32,
        width=96,
        height=80,
        backbone="dino_vits16",
        cache_more=["backbone.timm_name=test_vit.r160_in1k", "backbone.image_size=64"],
        train_more=["text.layers=2", "text.width=64"],
        compare_batch=4,
        compare_steps=1,
        accelerator="cpu",
        processes=1,
        output=str(tmp_path / "recipe"),
    )
    Recipe(settings, tmp_path / "work").run()
    found = json.loads((tmp_path / "recipe.json").read_text())
    assert found["cache"]["images"] == 24
    training = found["training"]
    assert training["steps"] == 4 and training["micro_batch"] is None
    whole = found["cache"]["seconds"] + training["seconds"]
    assert training["wall_clock"] == pytest.approx(whole)
    assert training["seconds"] == pytest.approx(
        training["seconds_before"] + training["seconds_first"] + 3 * training["seconds_per_step"]
    )
    assert [(part["step"], part["name"]) for part in found["parts"]] == [
        (step, name) for step in ("cached", "uncached") for name in ("data", "vision", "text", "loss", "optimiser")
    ]
    assert all(part["seconds"] > 0 for part in found["parts"])
    assert set(found["speeds"]) == {"cached", "uncached", "original"}
    text = (tmp_path / "recipe.md").read_text()
    assert "with the cache" in text and found["machine"] in text


@pytest.mark.parametrize(
    ("memory", "storage", "whole_batch"),
    [(80, "bfloat16", False), (80, "int8", False), (141, "bfloat16", True), (141, "int8", True)],
)
def test_micro_batch_of_the_paper(memory, storage, whole_batch):
    found = choose_micro_batch(memory * GB, WHOLE_SET[storage], 16_384, IMAGE, TOWER)
    assert (found is None) == whole_batch
    if found is not None:
        assert 512 <= found < 16_384 and found & (found - 1) == 0


def test_more_room_never_means_less_at_a_time():
    sizes = [choose_micro_batch(memory * GB, 0, 16_384, IMAGE, TOWER) or 16_384 for memory in range(20, 140, 10)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] == 16_384


@pytest.mark.parametrize(
    "wrong", [{"samples": 100}, {"micro_batch": "0"}, {"images": 0}, {"accelerator": "tpu"}], ids=str
)
def test_wrong_values_are_named(wrong):
    refused(lambda: RecipeSettings(**wrong), f"{next(iter(wrong))}=")
