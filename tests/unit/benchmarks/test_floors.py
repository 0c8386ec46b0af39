"""Counted operations equal those of torch's own counter on real models, and the figures of the paper's recipe."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import floors
from simzss.losses.contrastive import contrastive_loss
from simzss.models.build import build_text_encoder
from simzss.models.pooling import similarity_pool
from simzss.models.settings import ScratchText
from tests.support.models import make_backbone

VIT_B14 = floors.Vision(floors.Blocks(12, 768, 3072), 256, 5, 14)
TOWER = floors.Text(floors.Blocks(12, 512, 2048), 49408, 77, 768)
SAMPLES, BANDWIDTH = 4.0e6, 4.3e12


def counted(action):
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def eager_tower(width=64, layers=3, heads=4, out=48):
    """Build a tower whose attention is plain products: torch counts five products for the gradient of a fused one."""
    encoder = build_text_encoder(ScratchText(layers=layers, width=width, heads=heads, context_length=20), out)
    encoder.body.set_attn_implementation("eager")
    return encoder


def test_vision():
    backbone = make_backbone()
    for block in backbone.model.blocks:  # torch does not count the fused attention of a CPU
        block.attn.fused_attn = False
    shape = floors.vision_of(backbone)
    found = counted(lambda: backbone(torch.zeros(3, 3, 64, 64)))
    assert floors.vision_forward(shape, 3).flops == pytest.approx(found, rel=0.01)


def test_cnn_is_not_counted():
    assert floors.vision_of(make_backbone(timm_name="test_resnet.r160_in1k")) is None


def test_text():
    encoder = eager_tower()
    shape = floors.text_of(encoder)
    ids = torch.ones(5, 11, dtype=torch.long)
    forward = floors.text_forward(shape, [(5, 11)])
    assert forward.flops == pytest.approx(counted(lambda: encoder(ids, torch.ones_like(ids))), rel=0.01)
    tokens = encoder(ids, torch.ones_like(ids)).tokens
    backward = floors.text_backward(shape, [(5, 11)])
    assert backward.flops == pytest.approx(counted(lambda: tokens.sum().backward()), rel=0.01)
    assert shape.parameters == sum(parameter.numel() for parameter in encoder.parameters())


def test_text_of_several_lengths_is_the_sum():
    alone = [floors.text_forward(TOWER, [part]) for part in ((3, 9), (4, 14))]
    together = floors.text_forward(TOWER, [(3, 9), (4, 14)])
    assert together.flops == alone[0].flops + alone[1].flops
    assert together.bytes < alone[0].bytes + alone[1].bytes  # weights are read once


def test_pooling():
    images, slots, patches, width = 3, 4, 10, 32
    queries = torch.randn(images * slots, width, requires_grad=True)
    rows = torch.arange(images).repeat_interleave(slots)
    places = torch.arange(slots).repeat(images)

    def both_ways():
        kept = F.normalize(torch.randn(images, patches, width), dim=-1)
        similarity_pool(queries, kept, rows, places, slots, 0.1).sum().backward()

    assert floors.pooling(images * slots, images, patches, width).flops == counted(both_ways)


def test_contrastive():
    images = F.normalize(torch.randn(24, 16), dim=-1)
    texts = F.normalize(torch.randn(24, 16), dim=-1).requires_grad_()
    scale = torch.tensor(2.5, requires_grad=True)
    own = torch.arange(24)

    def least():
        logits = 10 * texts @ images.T
        (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)).backward()

    floor = floors.contrastive(24, 24, 16).flops
    assert floor == counted(least)
    # Ours makes a table for each direction, since the rows of a rank are not those of all, and the scale learns.
    assert counted(lambda: contrastive_loss(images, texts, scale).backward()) == 2.5 * floor


def test_concepts():
    mentions, spans, present, width = 40, 60, 30, 64
    tokens = torch.randn(spans, width, requires_grad=True)
    owner = torch.arange(spans) % present
    pooled = torch.randn(mentions, width, requires_grad=True)

    def both_ways():
        sums = torch.zeros(present, width).index_add(0, owner, F.normalize(tokens, dim=-1))
        F.cross_entropy(pooled @ F.normalize(sums, dim=-1).T, torch.arange(mentions) % present).backward()

    products = floors.concepts(mentions, 0, present, width).flops
    assert products == counted(both_ways)  # torch counts products only
    assert floors.concepts(mentions, spans, present, width).flops - products == 12 * spans * width


def test_figures_of_the_recipe():
    assert floors.vision_forward(VIT_B14, 1).flops / 1e9 == pytest.approx(47.1, abs=0.05)
    for length, expected in ((77, 18.1), (32, 7.4), (24, 5.5)):
        both = floors.text_forward(TOWER, [(1, length)]) + floors.text_backward(TOWER, [(1, length)])
        assert both.flops / 1e9 == pytest.approx(expected, abs=0.05), length
    assert TOWER.parameters / 1e6 == pytest.approx(63.5, abs=0.1)
    assert floors.adamw(TOWER.parameters).bytes == 28 * TOWER.parameters


@pytest.mark.parametrize(("length", "seconds"), [(32, 35), (24, 26)])
def test_memory_traffic_of_the_recipe(length, seconds):
    batch = 16_384
    step = floors.text_forward(TOWER, [(batch, length)]) + floors.text_backward(TOWER, [(batch, length)])
    step += floors.gather(batch, 257 * 768 * 2) + floors.pooling(3 * batch, batch, 256, 768)
    step += floors.adamw(TOWER.parameters)
    assert step.bytes * SAMPLES / batch / BANDWIDTH == pytest.approx(seconds, rel=0.1)


def test_work_adds_up():
    assert floors.Work(1, 2) + floors.Work(3, 4) * 2 == floors.Work(7, 10)
