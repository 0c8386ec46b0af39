import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simzss.models.mask_head.head import DecoderOutput, MaskHead, build_mask_head
from simzss.models.mask_head.views import FeatureLevel
from simzss.models.settings import MaskHeadSettings
from tests.support.models import make_backbone, refused, shaken
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise

CHANNELS, EMBEDDING, CLASSES, QUERIES = 6, 10, 4, 5
SETTINGS = MaskHeadSettings(
    window=32, depths=(0, 3), width=8, heads=2, queries=QUERIES, layers=3, upsample=2,
    ensemble_alpha=0.4, ensemble_beta=0.8,
)  # fmt: skip
ABLATIONS = [{}] + [{"views": views} for views in ("global", "windows")] + [
    {"gate": False},
    {"restore": False},
    {"views": "windows", "restore": False},
    {"masked": False},
    {"depths": (2,), "upsample": 1, "layers": 1},
]  # fmt: skip


def head(corrects: bool = True, **changes) -> MaskHead:
    """Spread well; without `corrects` the correction's last layer is as at the beginning, zero."""
    torch.manual_seed(0)
    made = MaskHead(SETTINGS.replace(**changes), CHANNELS, EMBEDDING)
    last = {name: value.clone() for name, value in made.correct[-1].state_dict().items()}
    shaken(made, amount=0.3)
    if not corrects:
        made.correct[-1].load_state_dict(last)
    return made


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(noise(*shape, seed=seed), dim=-1).float()


def levels_of(settings: MaskHeadSettings) -> list[FeatureLevel]:
    sizes = {"both": [(2, 2), (4, 6)], "global": [(2, 2)], "windows": [(4, 6)]}[settings.views]
    return [
        FeatureLevel(
            [noise(2, CHANNELS, *size, seed=number + depth).float() for depth in settings.depths],
            unit(2, *size, EMBEDDING, seed=number + 9).permute(0, 3, 1, 2),
        )
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("corrects", [True, False], ids=["trained", "before training"])
@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_outputs_by_the_parts(changes, corrects):
    """Adapters of all depths are summed; an embedding is the mean inside the mask plus the correction."""
    made = head(corrects, **changes)
    levels, settings = levels_of(made.settings), made.settings
    adapted = []
    for level in range(len(levels)):
        parts = [adapter([each.intermediates[n] for each in levels])[level] for n, adapter in enumerate(made.adapters)]
        adapted.append(torch.stack(parts).sum(dim=0))
    predictions = made.decoder(adapted, made.pixels(adapted[-1]))
    for adapter in made.adapters:
        assert adapter.views == settings.views
        assert (adapter.gate is not None) == (settings.gate and settings.views == "both")
        assert (adapter.fine is not None) == (settings.restore and settings.views != "global")
    assert made.decoder.masked == settings.masked and made.decoder.layers[0].cross.heads == settings.heads
    outputs, weights = made(levels), loops.weights_of(made.correct)
    assert len(outputs) == settings.layers + 1
    for output, (queries, masks) in zip(outputs, predictions, strict=True):
        assert output.masks.shape[2:] == tuple(settings.upsample * side for side in levels[-1].dense.shape[2:])
        close(output.masks, masks.detach().double().numpy(), 1e-5)
        for image, query in np.ndindex(2, QUERIES):
            seen = np.zeros(EMBEDDING)
            for level in levels:
                mask = loops.sigmoid(output.masks[image, query].detach().double().numpy())
                shares = loops.resized(mask, tuple(level.dense.shape[2:]), antialias=True)
                seen += (shares * level.dense[image].double().numpy()).sum(axis=(1, 2)) / shares.sum()
            learned = loops.two_layers(weights, queries[image, query].detach().double().numpy())
            assert corrects or not learned.any()
            total = seen / math.sqrt(sum(seen**2)) + learned
            close(output.embeddings[image, query], total / math.sqrt(sum(total**2)), 1e-5)


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_every_parameter_takes_part(changes):
    """Processes that train together wait for each parameter's gradient."""
    made = head(**changes)
    outputs = made(levels_of(made.settings))
    logits = [made.class_logits(output.embeddings, unit(CLASSES, EMBEDDING)).square().sum() for output in outputs]
    torch.stack(logits).sum().backward(retain_graph=True)
    assert not any(own.grad is not None and own.grad.any() for own in made.decoder.mask.parameters())  # pooled: frozen
    torch.stack([output.masks.square().sum() for output in outputs]).sum().backward()
    assert [name for name, own in made.named_parameters() if own.grad is None] == []
    assert all(own.grad.abs().max() > 1e-6 for own in (*made.correct.parameters(), made.no_object, made.logit_scale))


def test_embeddings_stay_exact_under_autocast():
    made = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = made(levels_of(made.settings))[-1]
    assert output.embeddings.dtype == output.masks.dtype == torch.float32
    torch.testing.assert_close(output.embeddings.norm(dim=-1), torch.ones(2, QUERIES), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1 / 0.07, 1.0, 99.0, 101.0, 1e4])
def test_class_logits_are_scaled_cosines_the_last_of_no_object(scale):
    made = head()
    assert MaskHead(SETTINGS, CHANNELS, EMBEDDING).scale.item() == pytest.approx(1 / 0.07)
    made.logit_scale.data.fill_(math.log(scale))
    embeddings, text = unit(2, QUERIES, EMBEDDING), unit(CLASSES, EMBEDDING, seed=1)
    none = made.no_object.detach().double().numpy()
    every = np.array([*text.double().numpy(), none / math.sqrt(sum(none**2))])
    expected = min(scale, 100.0) * embeddings.double().numpy() @ every.T
    close(made.class_logits(embeddings, text.double()), expected, 1e-5)


def test_class_maps_equal_a_loop():
    made = head()
    made.trained = ("cat", "hound", "tree")
    exponents = made.ensemble_exponents([("dog", "hound"), ("lamp",), ("cat",), ("wood",)])
    assert exponents.tolist() == pytest.approx([0.4, 0.8, 0.4, 0.8])
    output = DecoderOutput(unit(2, QUERIES, EMBEDDING), noise(2, QUERIES, 4, 6, seed=1).float())
    text = unit(CLASSES, EMBEDDING, seed=3)
    levels = [FeatureLevel([], unit(2, h, w, EMBEDDING, seed=4 + h).permute(0, 3, 1, 2)) for h, w in ((2, 3), (4, 6))]
    maps = made.class_maps(output, levels, lambda vectors: (vectors @ text.T).mT, exponents)
    logits, words = made.class_logits(output.embeddings, text).detach().double().numpy(), text.double().numpy()
    for image in range(2):
        learned = loops.semantic(logits[image], output.masks[image].double().numpy())
        cosines = [np.einsum("kd,dhw->khw", words, level.dense[image].double().numpy()) for level in levels]
        zero_shot = made.scale.item() * sum(loops.resized(own, (4, 6)) for own in cosines) / 2
        close(maps[image], loops.ensemble(learned, zero_shot, exponents.tolist()), 1e-5)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        *(({"depths": value}, ["depths="]) for value in ((), (3, 0), (2, 2))),
        *(
            ({"width": width, "heads": heads}, [f"heads={heads}", f"width={width}"])
            for width, heads in ((6, 2), (8, 3))
        ),
        ({"depths": (0, 6)}, ["mask_head: ", "depth 6", "0 to 5", "backbone tiny"]),
        ({"depths": (-1, 0)}, ["mask_head: ", "depth -1", "0 to 5"]),
        ({"window": 40}, ["mask_head: ", "40", "multiples of 16"]),
    ],
    ids=str,
)
def test_a_head_that_does_not_fit(changes, parts):
    backbone = make_backbone()
    assert build_mask_head(SETTINGS, backbone, ["cat"]).trained == ("cat",)
    refused(lambda: build_mask_head(SETTINGS.replace(**changes), backbone), *parts)


def test_a_head_encodes_as_its_settings_say():
    backbone = make_backbone()
    made = build_mask_head(SETTINGS, backbone)
    levels = made.encode(backbone, lambda patches: F.normalize(patches, dim=-1), torch.zeros(1, 3, 64, 96).byte())
    assert [tuple(level.dense.shape[2:]) for level in levels] == [(2, 2), (4, 6)]
    assert [len(level.intermediates) for level in levels] == [2, 2]
    output = made(levels)[-1]
    assert output.embeddings.shape == (1, QUERIES, backbone.width) and output.masks.shape == (1, QUERIES, 8, 12)


def test_a_backbone_without_blocks():
    cnn = make_backbone(timm_name="test_resnet.r160_in1k")
    refused(lambda: build_mask_head(SETTINGS, cnn), "mask_head: ", "test_resnet.r160_in1k", "give a ViT")
