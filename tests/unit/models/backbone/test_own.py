"""The example of a backbone of one's own: it trains, is saved and read, and carries a mask head."""

import torch

from examples.own_backbone import ConvBackbone
from simzss.losses.contrastive import contrastive_loss
from simzss.models.checkpoint import load_model, save_model
from simzss.models.mask_head.head import build_mask_head
from simzss.models.settings import BackboneSettings, MaskHeadSettings
from simzss.models.simzss import SimZSS
from simzss.segmentation.segmenter import Segmenter
from tests.support.models import make_scratch, refused


def own_backbone(seed: int = 0, **changes) -> ConvBackbone:
    torch.manual_seed(seed)
    return ConvBackbone(BackboneSettings(**{"name": "own", "timm_name": "none", "image_size": 64} | changes))


def test_features():
    backbone = own_backbone()
    images = torch.randint(256, (2, 3, 48, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, maps = backbone(images), backbone.patch_map(images)
    assert (found.grid, found.cls.shape, found.patches.shape, maps.shape) == (
        (3, 5),
        (2, 64),
        (2, 15, 64),
        (2, 64, 3, 5),
    )
    torch.testing.assert_close(backbone.finish(maps.flatten(2).mT), found.patches)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    refused(lambda: own_backbone(image_size=70), "70", "64 or 80")


def test_trains_segments_and_is_read_again(tmp_path):
    model = SimZSS(own_backbone(), make_scratch(), "center")
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.feature_norm.fit([model.backbone(images)])
    tokens = model.text_encoder.tokenizer(["a cat", "two dogs", "grass", "a tree"], padding=True, return_tensors="pt")
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(8):
        image, text = model.encode_image(images), model.encode_text(tokens["input_ids"], tokens["attention_mask"])
        loss = contrastive_loss(image.cls, text.pooled, model.logit_scale)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]

    save_model(model, tmp_path)
    loaded = load_model(tmp_path, backbone=own_backbone())
    torch.testing.assert_close(loaded.text_encoder.encode(["a cat"])[0], model.eval().text_encoder.encode(["a cat"])[0])
    refused(lambda: load_model(tmp_path, backbone=own_backbone(seed=1)), str(tmp_path), "not those")
    mask = Segmenter(loaded, precision="32-true").predict(images[0].mul(255).byte().permute(1, 2, 0).numpy(), ["cat"])
    assert mask.mask.shape == (64, 64)


def test_mask_head():
    backbone = own_backbone()
    settings = MaskHeadSettings(window=64, depths=(0, 1), width=16, heads=2, queries=4, layers=2)
    head = build_mask_head(settings, backbone)
    outputs = head(head.encode(backbone, backbone.finish, torch.rand(1, 3, 128, 128)))
    assert outputs[-1].masks.shape[:2] == (1, 4)
    refused(lambda: backbone.check_intermediates([3]), "depth 3 is none of backbone own")
