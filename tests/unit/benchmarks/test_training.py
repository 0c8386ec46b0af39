"""What `make bench BENCH=training` counts and compares, on towers of a few thousand weights."""

import pytest
import torch

from benchmarks import floors
from benchmarks.original import padded_text
from benchmarks.parts import caption_lengths, given, measure_peaks, timed
from benchmarks.report import table
from benchmarks.runs import StepTimes, make_run
from benchmarks.training import Training
from simzss.training.data.batch import collate
from simzss.training.data.encoding import EncodedCaption
from simzss.training.data.images import Pixels

BACKBONE = ("backbone=dino_vits16", "backbone.weights=random", "backbone.timm_name=test_vit.r160_in1k")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    more = ("text.layers=2", "text.width=64")
    training = Training(tmp_path_factory.mktemp("bench"), (*BACKBONE, "backbone.image_size=64"), 8, 4, more)
    training.make_cache(training.setting.features, training.setting.shards)
    return training


def test_text_tower_row(bench):
    row = bench.text_tower()
    assert row.name == "text_tower" and row.unit == "captions/s"
    assert row.ours > row.baseline > 0  # 14 tokens against 77
    assert all(parameter.grad is None for parameter in bench.model.parameters())


def test_caches_of_more_and_more_images(bench):
    rows = bench.numbers()
    assert [row["images"] for row in rows] == [2, 4, 8]
    assert rows[0]["MB"] < rows[1]["MB"] < rows[2]["MB"]
    assert all(row["making"] > 0 and row["step"] > 0 for row in rows)


def test_step_with_given_features_is_the_step(bench):
    """Handed what the towers make, its loss is the loss; and what the parts count is what the batch holds."""
    found = {}

    class Look(StepTimes):
        def on_train_end(self, trainer, pl_module):
            batch = next(iter(trainer.datamodule.batches(0))).to(pl_module.device)
            with trainer.precision_plugin.train_step_context():
                with given(pl_module, pl_module.encode_image(batch), pl_module.encode_text(batch)):
                    found["given"] = pl_module.training_step(batch, 0).item()
                pl_module._log = lambda *_: None
                found["whole"] = pl_module.training_step(batch, 0).item()
            found["captions"] = sum(captions for captions, _ in caption_lengths(batch))

    watch = Look()
    make_run(bench.setting.cached(4, "trainer.max_steps=3"), bench.folder, [watch], bench.model).fit()
    assert found["given"] == found["whole"]
    assert found["captions"] == 4
    assert watch.steps == 3 and watch.seconds_per_step > 0 and watch.peak_memory > 0
    assert watch.training < watch.first < watch.last


def test_lengths_are_those_of_the_captions():
    captions = [EncodedCaption(tuple(range(length)), ()) for length in (3, 5, 5, 9)]
    assert caption_lengths(collate(captions, 0, Pixels(torch.empty(0)))) == [(1, 3), (2, 5), (1, 9)]
    ids, mask = padded_text(captions, 12, 0)
    assert ids.shape == (4, 12) and mask.sum().item() == 22


def test_peaks():
    peaks = measure_peaks(torch.device("cpu"), "32-true", side=64, megabytes=1)
    assert peaks.towers > 0 and peaks.full > 0 and peaks.bandwidth > 0


def test_no_streaming_beats_the_peak():
    """A copy alone is no peak: a CPU fetches what it overwrites, and updates in place were faster than such a floor."""
    device, values = torch.device("cpu"), torch.ones(16_000_000)

    def holds():
        peaks = measure_peaks(device, "32-true", side=64, megabytes=64)
        reached = max(2 * values.nbytes / timed(device, lambda: values.mul_(1.0))[1] for _ in range(5))
        return reached < 1.25 * peaks.bandwidth

    assert any(holds() for _ in range(4))  # other work may slow down the one and not the other


def test_longer_captions_have_a_higher_floor(bench):
    shape = floors.text_of(bench.model.text_encoder)
    works = [floors.text_forward(shape, [(4, length)]) for length in (8, 16)]
    assert works[0].flops < works[1].flops and works[0].bytes < works[1].bytes


def test_table():
    text = table(["a", "b"], [["x", 0.012345], [12, None], [1234.5, 2.0]])
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| x | 0.0123 |", "| 12 |  |", "| 1,234 | 2 |"]
