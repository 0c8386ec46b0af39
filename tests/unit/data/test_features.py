import pytest
import torch
from safetensors import safe_open

import simzss.data.features as module
from simzss.data.features import FeatureSet, FeatureSetBuilder
from simzss.data.shards import Skipped
from simzss.errors import InputError
from simzss.models.features import ImageFeatures
from tests.support.files import caption


def features(count: int, start: int = 0) -> ImageFeatures:
    """Features that tell their row."""
    rows = torch.arange(start, start + count).float()
    return ImageFeatures(rows[:, None].expand(-1, 4), rows[:, None, None].expand(-1, 2, 4), (1, 2))


def captions(count: int, start: int = 0) -> list:
    return [(caption(f"dog {i}", "dog"), caption("café 🐶")) for i in range(start, start + count)]


def feature_set(count: int = 3) -> FeatureSet:
    whole = features(count)
    skipped = (Skipped("000", "unreadable image: no known format", "a/s.tar"), Skipped("t.tar", "unreadable tar"))
    return FeatureSet(whole.cls, whole.patches, whole.grid, captions(count), skipped)


def test_round_trip(tmp_path):
    saved = feature_set()
    saved.save(tmp_path / "f.safetensors", "key")
    loaded = FeatureSet.load(tmp_path / "f.safetensors", "key")
    assert torch.equal(loaded.cls, saved.cls) and torch.equal(loaded.patches, saved.patches)
    assert (loaded.grid, loaded.captions, loaded.skipped) == (saved.grid, saved.captions, saved.skipped)


def test_header_does_not_grow_with_the_captions(tmp_path):
    """A safetensors header may have 100 MB; captions of a million images have more."""
    feature_set(100).save(tmp_path / "f.safetensors", "key")
    with safe_open(tmp_path / "f.safetensors", framework="pt") as file:
        assert sum(len(value) for value in file.metadata().values()) < 100


def test_two_runs_that_write_the_same_file_do_not_share_an_unfinished_one(tmp_path, monkeypatch):
    write, seen = module.save_file, []

    def spy(tensors, path, metadata):
        seen.append(path)
        if len(seen) == 1:
            feature_set().save(tmp_path / "f.safetensors", "key")
        write(tensors, path, metadata)

    monkeypatch.setattr(module, "save_file", spy)
    feature_set().save(tmp_path / "f.safetensors", "key")
    assert len(set(seen)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["f.safetensors"]
    assert len(FeatureSet.load(tmp_path / "f.safetensors", "key")) == 3


def test_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(InputError, match=r"f\.safetensors cannot be written: No space left"):
        feature_set().save(tmp_path / "f.safetensors", "key")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"x" * 200])
def test_file_that_cannot_be_read(tmp_path, data):
    (tmp_path / "f.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"f\.safetensors"):
        FeatureSet.load(tmp_path / "f.safetensors", "key")


def test_file_of_other_features(tmp_path):
    feature_set().save(tmp_path / "f.safetensors", "key")
    with pytest.raises(InputError, match="another backbone"):
        FeatureSet.load(tmp_path / "f.safetensors", "other")


@pytest.mark.parametrize("capacity", [1, 2, 5, 7, 100])
def test_builder_takes_more_than_it_expects(capacity):
    builder = FeatureSetBuilder(capacity, torch.float32)
    for start, count in ((0, 3), (3, 3), (6, 1)):
        builder.add(features(count, start), captions(count, start))
    built = builder.finish()
    assert torch.equal(built.cls, features(7).cls) and torch.equal(built.patches, features(7).patches)
    assert built.captions == captions(7) and built.grid == (1, 2)


def test_nothing_readable():
    with pytest.raises(InputError, match="no readable image"):
        FeatureSetBuilder(3, torch.float32).finish()
