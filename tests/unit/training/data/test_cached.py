"""Batches from a cache: what is in them, and which caches are refused."""

from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from simzss.data.shards import decode_image, read_shards
from simzss.data.transforms import WholeImage
from simzss.errors import InputError
from simzss.features.settings import CacheSettings
from simzss.models.feature_norm import FeatureNorm
from simzss.models.simzss import SimZSS
from simzss.training.data.cached import CachedData
from tests.support.files import annotation, make_shards, write_tar
from tests.support.models import make_backbone, make_scratch, scratch_model, shaken

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    bad = write_tar(folder / "z-bad.tar", [("no.png", b"no image"), ("no.json", annotation())])
    return [*make_shards(folder, [7, 6]), str(bad)]


@pytest.fixture(scope="module")
def folder(shards, tmp_path_factory):
    """A cache of three views."""
    path = tmp_path_factory.mktemp("kept") / "features"
    make_data(path, shards, settings=CacheSettings(views=3, storage="float32", num_workers=0)).setup("fit")
    return path


def make_data(features, shards=None, model=None, **changes) -> CachedData:
    """Not set up yet."""
    options = {"batch_size": 4, "placement": "auto", "verify": True, "norm_images": 16, "seed": 0, "micro_batch": None}
    options |= {"settings": CacheSettings(storage="float32", num_workers=0), "precision": "32-true"} | changes
    data = CachedData(model or scratch_model(), None, features=str(features), shards=shards, **options)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU), current_epoch=0)
    return data


def opened(features, **changes) -> CachedData:
    data = make_data(features, **changes)
    data.setup("fit")
    data.on_norm_fitted(FeatureNorm("none", 64))
    return data


def rows_of(data: CachedData, batch) -> list[int]:
    """Images of a batch, found by their features among all of those in the cache."""
    norm = FeatureNorm("none", 64)
    found = data.features(batch, norm).cls
    known = [norm(data.store.rows(torch.arange(13), torch.full((13,), view)).features()).cls for view in range(3)]
    return [min(range(13), key=lambda row: min(float((one - k[row]).norm()) for k in known)) for one in found]


def test_every_image_once_an_epoch(folder):
    data = opened(folder)
    assert data.steps_per_epoch == 3
    epochs = [list(chain.from_iterable(rows_of(data, batch) for batch in data.batches(epoch))) for epoch in (0, 1, 0)]
    assert all(len(rows) == len(set(rows)) == 12 for rows in epochs)
    assert epochs[0] == epochs[2] != epochs[1]


def test_views_and_captions_change(folder):
    data = opened(folder)
    draws = set()
    for epoch in range(6):
        for batch in data.batches(epoch):
            norm = FeatureNorm("none", 64)
            for row, cls in zip(rows_of(data, batch), data.features(batch, norm).cls, strict=True):
                draws.add((row, tuple(cls.tolist())))
    assert len(draws) > 20  # of 13 images in 3 views


def test_features_are_those_of_the_photo(folder, shards):
    data = opened(folder)
    model = scratch_model()
    samples = list(read_shards(shards[:2]))
    transform = WholeImage(64)
    photos = torch.stack([transform(decode_image(record.image, transform.least)) for record in samples])
    expected = model.encode_image(photos)
    kept = data.store.rows(torch.arange(13), torch.zeros(13, dtype=torch.long)).features()
    torch.testing.assert_close(kept.cls, expected.cls, rtol=0, atol=1e-5)
    torch.testing.assert_close(kept.patches, expected.patches, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["none", "center", "whiten"])
def test_mapped_features_are_normalised_in_the_step(folder, mode):
    found = []
    for placement in ("host", "mapped"):
        data = make_data(folder, placement=placement)
        data.setup("fit")
        norm = FeatureNorm(mode, 64)
        norm.fit(data.feature_batches())
        data.on_norm_fitted(norm)
        found.append([data.features(batch, norm) for batch in data.batches(0)])
    for host, mapped in zip(*found, strict=True):
        torch.testing.assert_close(host.cls, mapped.cls, rtol=0, atol=1e-5)
        torch.testing.assert_close(host.patches, mapped.patches, rtol=0, atol=1e-5)
        torch.testing.assert_close(host.patches.norm(dim=-1), torch.ones(host.patches.shape[:2]))


def test_a_batch_larger_than_the_images_has_each_of_them_once(folder):
    data = opened(folder, batch_size=20)
    (batch,) = data.batches(0)
    assert len(batch) == 20 and batch.image_row.shape == (20,)
    assert len(batch.features) == 13 == len(set(rows_of(data, batch)))


def test_what_could_not_be_read_is_known_to_every_run(folder, shards):
    assert [(record.key, record.shard) for record in opened(folder).skipped] == [("no", "z-bad.tar")]


def test_shards_complete_a_cache_and_leave_a_complete_one_as_it_is(shards, tmp_path):
    make_data(tmp_path / "kept", shards).setup("fit")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("features-*")}
    (tmp_path / "kept" / "index.json").unlink()
    with pytest.raises(InputError, match=r"not complete: .*simzss cache"):
        make_data(tmp_path / "kept").setup("fit")
    make_data(tmp_path / "kept", shards).setup("fit")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("features-*")} == before


def test_no_cache(tmp_path):
    with pytest.raises(InputError, match=rf"features {tmp_path}/none .*simzss cache") as caught:
        make_data(tmp_path / "none").setup("fit")
    assert "\n" not in str(caught.value)


def test_cache_of_another_backbone_is_refused(folder):
    other = SimZSS(shaken(make_backbone(), 5), make_scratch())
    other.backbone.fingerprint = "0123456789abcdef"
    with pytest.raises(InputError, match=r"backbone\.weights was .* and is 0123456789abcdef") as caught:
        make_data(folder, model=other).setup("fit")
    assert "\n" not in str(caught.value)


def test_one_changed_byte_is_noticed(shards, tmp_path):
    make_data(tmp_path / "kept", shards).setup("fit")
    path = next((tmp_path / "kept").glob("features-*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for placement in ("host", "mapped"):
        with pytest.raises(InputError, match=rf"{path.name} is corrupted") as caught:
            make_data(tmp_path / "kept", placement=placement).setup("fit")
        assert "\n" not in str(caught.value)
