"""The public names: lazy, quick to import, and what the verbs do."""

import subprocess
import sys

import pytest

import simzss
from tests.support.program import ROOT


def test_import_is_lazy_and_names_are_there():
    code = "import sys, simzss; print({'torch', 'pydantic', 'hydra', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert all(hasattr(simzss, name) for name in simzss.__all__) and {*simzss._PUBLIC} < {*simzss.__all__}


def test_unknown_names():
    with pytest.raises(AttributeError, match="Segmentor"):
        _ = simzss.Segmentor


def test_lists():
    assert "dinov2_vitb14_reg4" in simzss.list_backbones()
    assert {"voc20", "ade20k"} <= set(simzss.list_benchmarks())


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (simzss.train, {"experiment": "demo", "optim": {"lrr": 1}}, "optim.lrr"),
        (simzss.train_masks, {}, "masks.root=…"),
        (simzss.cache_features, {"data.shards": "x"}, "output=…"),
        (simzss.evaluate, {"benchmark": "voc20", "model": "m"}, "benchmark.root=…"),
    ],
)
def test_settings_that_do_not_hold(function, settings, message):
    with pytest.raises(simzss.ConfigError, match=message):
        function(**settings)
