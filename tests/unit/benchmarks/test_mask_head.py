from benchmarks.mask_head import step_cost
from simzss.commands.verbs import settings_of
from tests.support.models import make_backbone


def test_cost_of_a_step_is_that_of_the_experiment():
    """On a tiny backbone: parameters and fixed bytes are counted, and what is live grows with the head."""
    small = {"window": 64, "depths": [0, 1, 2], "queries": 4, "layers": 1, "heads": 4}
    wanted = {"experiment": "mrovseg", "model": "none", "masks": {"root": "none"}, "mask_loss": {"num_points": 16}}
    costs = []
    for width in (16, 32):
        settings = settings_of("train-masks", wanted | {"mask_head": small | {"width": width}})
        costs.append(step_cost(settings, make_backbone(features="self"), 1, "32-true"))
    narrow, wide = costs
    assert 0 < narrow.live < wide.live and 0 < narrow.trainable < wide.trainable
    assert narrow.frozen == wide.frozen
    assert all(cost.fixed == 4 * (cost.frozen + 3 * cost.trainable) for cost in costs)
