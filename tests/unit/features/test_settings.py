import pytest

from simzss.config import compose, to_plain
from simzss.features.settings import CacheSettings, check_settings
from tests.support.models import refused

NAN = float("nan")


def plain(*overrides):
    return to_plain(compose("cache", ["data.shards=x", "output=y", *overrides]))


def test_defaults_are_those_of_the_file():
    assert check_settings(plain()) == CacheSettings()


def test_values_arrive():
    found = check_settings(
        plain("views=4", "min_crop=0.5", "storage=int8", "file_mb=3", "batch_size=7", "data.num_workers=0", "seed=9")
    )
    assert found == CacheSettings(4, 0.5, "int8", 3.0, 7, 0, 9)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        *((f"views={value}", "1 to 4") for value in (0, 5, -1)),
        *((f"min_crop={value}", "above 0") for value in (0, 1.1, NAN)),
        *((f"storage={value}", "bfloat16") for value in ("", "bf16")),
        ("storage=int4", "int8"),
        *((f"file_mb={value}", "above 0") for value in (0, -1, NAN, "inf")),
        *((f"batch_size={value}", "at least 1") for value in (0, -2)),
        ("data.num_workers=-1", "at least 0"),
        *((f"seed={value}", "0 to") for value in (-1, 2**32)),
        ("precision=16", "bf16-mixed"),
        ("accelerator=tpu", "cpu"),
    ],
)
def test_what_no_run_could_use_is_refused(override, says):
    refused(lambda: check_settings(plain(override)), override.partition("=")[0], says)
