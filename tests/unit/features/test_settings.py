import pytest

from simzss.commands.cache import CacheSettings
from simzss.features.settings import FeatureSettings
from simzss.models.settings import BackboneSettings
from tests.support.models import refused

NAN, INFINITE = float("nan"), float("inf")


def test_the_command_hands_on_what_it_was_given():
    given = {"views": 4, "min_crop": 0.5, "storage": "int8", "file_mb": 3, "batch_size": 7, "seed": 9}
    backbone = BackboneSettings(name="tiny", timm_name="x")
    command = CacheSettings(backbone=backbone, data={"shards": "x", "num_workers": 0}, output="y", **given)
    assert command.features == FeatureSettings(num_workers=0, **given)
    assert CacheSettings(backbone=backbone, data={"shards": "x"}, output="y").features == FeatureSettings()


def test_block_size():
    assert (FeatureSettings().block_size("cpu"), FeatureSettings().block_size("cuda")) == (16, 64)
    assert FeatureSettings(batch_size=7).block_size("cuda") == 7


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("views", (0, 5, -1)),
        ("min_crop", (0, 1.1, NAN)),
        ("storage", ("", "bf16", "int4")),
        ("file_mb", (0, -1, NAN, INFINITE)),
        ("batch_size", (0, -2)),
        ("num_workers", (-1,)),
        ("seed", (-1, 2**32)),
    ],
)
def test_what_no_run_could_use_is_refused(key, values):
    for value in values:
        refused(lambda value=value: FeatureSettings(**{key: value}), key, str(value))
