from benchmarks.multires import step_cost
from simzss.config import compose, to_plain
from simzss.models.mask_head.head import HeadConfig, build_head
from tests.support.models import make_backbone


def test_cost_of_a_step_is_that_of_the_experiment():
    """On a tiny backbone: parameters and fixed bytes are counted, and what is live grows with the head."""
    small = ["multires.window=64", "multires.depths=[0,1,2]", "multires.queries=4", "multires.layers=1"]
    small += ["multires.heads=4", "mask_loss.points=16"]
    costs = {}
    for width in (16, 32):
        plain = to_plain(compose("train_masks", ["experiment=mrovseg", *small, f"multires.width={width}"]))
        backbone = make_backbone(features="self")
        cost = costs[width] = step_cost(plain, backbone, 1, "32-true")
        head = build_head(HeadConfig.from_plain(plain["multires"]), backbone)
        assert cost.trainable == sum(parameter.numel() for parameter in head.parameters())
        assert cost.fixed >= 12 * cost.trainable + 4 * sum(p.numel() for p in backbone.parameters())
        assert cost.gigabytes(3) == (cost.fixed + 3 * cost.live) / 2**30
    assert 0 < costs[16].live < costs[32].live
