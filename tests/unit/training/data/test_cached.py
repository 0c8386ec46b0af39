"""Batches from a cache: what is in them, and which caches are refused."""

import shutil
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from simzss.data.images import decode_image
from simzss.data.shards import read_shards
from simzss.data.transforms import WholeImage
from simzss.features.store import FeatureStore
from simzss.models.simzss import SimZSS
from simzss.training.data.cached import CachedDataModule
from simzss.training.data.images import CachedRows
from simzss.training.settings import CachedSettings
from tests.support.files import annotation, make_shards, write_tar
from tests.support.models import make_backbone, make_scratch, refused, scratch_model, shaken

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    bad = write_tar(folder / "z-bad.tar", [("no.png", b"no image"), ("no.json", annotation())])
    return [*make_shards(folder, [7, 6]), str(bad)]


@pytest.fixture(scope="module")
def folder(shards, tmp_path_factory):
    """Make a cache of three views."""
    path = tmp_path_factory.mktemp("kept") / "features"
    make_data(path, shards, views=3).setup("fit")
    return path


def make_data(features, shards=None, model=None, **changes) -> CachedDataModule:
    """Make one that is not set up yet."""
    options = {"batch_size": 4, "norm_images": 16, "storage": "float32", "num_workers": 0, "shards": shards} | changes
    options = {"precision": "32-true", "seed": 0, "micro_batch": None, "settings": CachedSettings(**options)}
    data = CachedDataModule(model or scratch_model(), None, folder=features, **options)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU), current_epoch=0)
    return data


def opened(features, mode="none", **changes) -> tuple[CachedDataModule, SimZSS]:
    """Return data that is ready for the first step, and the model whose statistics it has."""
    data = make_data(features, **changes)
    data.setup("fit")
    model = SimZSS(make_backbone(), make_scratch(), mode)
    data.prepare_features(model.feature_norm, fitted=False)
    return data, model


def rows_of(data: CachedDataModule, batch) -> list[int]:
    """Find the images of a batch by their features among all of those in the cache."""
    model = scratch_model()
    found = batch.images.features(model).cls
    views = [data.store.rows(torch.arange(13), torch.full((13,), view)).features() for view in range(3)]
    known = [model.feature_norm(view).cls for view in views]
    return [min(range(13), key=lambda row: min(float((one - k[row]).norm()) for k in known)) for one in found]


def test_every_image_once_an_epoch(folder):
    data, _ = opened(folder)
    assert data.steps_per_epoch == 3
    epochs = [list(chain.from_iterable(rows_of(data, batch) for batch in data.batches(epoch))) for epoch in (0, 1, 0)]
    assert all(len(rows) == len(set(rows)) == 12 for rows in epochs)
    assert epochs[0] == epochs[2] != epochs[1]


def test_views_and_captions_change(folder):
    data, model = opened(folder)
    draws = set()
    for epoch in range(6):
        for batch in data.batches(epoch):
            for row, cls in zip(rows_of(data, batch), batch.images.features(model).cls, strict=True):
                draws.add((row, tuple(cls.tolist())))
    assert len(draws) > 20  # of 13 images in 3 views


def test_features_are_those_of_the_photo(folder, shards):
    data, _ = opened(folder)
    model = scratch_model()
    samples = list(read_shards(shards[:2]))
    transform = WholeImage(64)
    photos = torch.stack([transform(decode_image(record.image, transform.min_side)) for record in samples])
    expected = model.encode_image(photos)
    kept = data.store.rows(torch.arange(13), torch.zeros(13, dtype=torch.long)).features()
    torch.testing.assert_close(kept.cls, expected.cls, rtol=0, atol=1e-5)
    torch.testing.assert_close(kept.patches, expected.patches, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["none", "center", "whiten"])
def test_features_are_normalised_once_in_memory_and_in_every_step_where_they_are_mapped(folder, mode):
    found = []
    for placement in ("host", "mapped"):
        data, model = opened(folder, mode, placement=placement)
        assert data.store.normalised == (placement == "host")
        found.append([batch.images.features(model) for batch in data.batches(0)])
    for host, mapped in zip(*found, strict=True):
        torch.testing.assert_close(host.cls, mapped.cls, rtol=0, atol=1e-5)
        torch.testing.assert_close(host.patches, mapped.patches, rtol=0, atol=1e-5)
        torch.testing.assert_close(host.patches.norm(dim=-1), torch.ones(host.patches.shape[:2]))


def test_rows_of_a_store_are_its_features(folder):
    """As batches bring them where the store is on an accelerator."""
    data, model = opened(folder, "whiten")
    rows, views = torch.arange(13), torch.zeros(13, dtype=torch.long)
    found = CachedRows(rows, views, data.store).features(model)
    expected = model.feature_norm(FeatureStore.open(folder).rows(rows, views).features())
    torch.testing.assert_close(found.cls, expected.cls, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.patches, expected.patches, rtol=0, atol=1e-5)


def test_a_batch_larger_than_the_images_has_each_of_them_once(folder):
    data, _ = opened(folder, batch_size=20)
    (batch,) = data.batches(0)
    assert len(batch) == 20 and batch.image_index.shape == (20,)
    assert len(batch.images) == 13 == len(set(rows_of(data, batch)))


def test_what_could_not_be_read_is_known_to_every_run(folder, shards):
    assert [(record.key, record.shard) for record in opened(folder)[0].skipped] == [("no", "z-bad.tar")]


def test_shards_complete_a_cache_and_leave_a_complete_one_as_it_is(shards, tmp_path):
    make_data(tmp_path / "kept", shards).setup("fit")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("features-*")}
    (tmp_path / "kept" / "index.json").unlink()
    refused(lambda: make_data(tmp_path / "kept").setup("fit"), f"{tmp_path}/kept", "not complete", "simzss cache")
    make_data(tmp_path / "kept", shards).setup("fit")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("features-*")} == before


def test_cache_that_cannot_be_used(folder, tmp_path):
    refused(lambda: make_data(tmp_path / "none").setup("fit"), f"features {tmp_path}/none ", "simzss cache")
    other = SimZSS(shaken(make_backbone(), 5), make_scratch())
    other.backbone.fingerprint = "0123456789abcdef"
    refused(lambda: make_data(folder, model=other).setup("fit"), "backbone.weights was ", " and is 0123456789abcdef")
    changed = shutil.copytree(folder, tmp_path / "changed")
    path = next(changed.glob("features-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for placement in ("host", "mapped"):
        refused(lambda p=placement: make_data(changed, placement=p).setup("fit"), f"{path.name} is corrupted")
