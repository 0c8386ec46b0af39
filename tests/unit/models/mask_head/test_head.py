import json
import math

import numpy as np
import pytest
import torch

from simzss.models.mask_head.head import HeadConfig, MultiResHead, Round, build_head
from simzss.models.mask_head.views import VIEWS, Level, look
from tests.support.models import make_backbone, refused, shaken
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise

TAPPED, EMBEDDING, CLASSES = 6, 10, 4
PLAIN = {
    "window": 32,
    "scale": 2,
    "views": "both",
    "gate": True,
    "restore": True,
    "masked": True,
    "depths": [0, 3],
    "width": 8,
    "heads": 2,
    "queries": 5,
    "layers": 3,
    "upsample": 2,
    "learned_share": 0.4,
    "unseen_share": 0.8,
}
ABLATIONS = [{"views": views} for views in VIEWS] + [
    {"gate": False},
    {"restore": False},
    {"views": "windows", "restore": False},
    {"masked": False},
    {"depths": [2], "upsample": 1, "layers": 1},
]


def config(**changes) -> HeadConfig:
    return HeadConfig.from_plain(PLAIN | changes)


def head(trained: tuple[str, ...] = (), **changes) -> MultiResHead:
    """Spread well, but for the last layer of the correction."""
    torch.manual_seed(0)
    made = MultiResHead(config(**changes), TAPPED, EMBEDDING, trained)
    last = {name: value.clone() for name, value in made.correct[-1].state_dict().items()}
    shaken(made, amount=0.3)
    made.correct[-1].load_state_dict(last)
    return made


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(noise(*shape, seed=seed), dim=-1).float()


def levels_of(own: HeadConfig) -> list[Level]:
    sizes = {"both": [(2, 2), (4, 6)], "global": [(2, 2)], "windows": [(4, 6)]}[own.views]
    return [
        Level(
            [noise(2, TAPPED, *size, seed=number + depth).float() for depth in own.depths],
            unit(2, *size, EMBEDDING, seed=number + 9).permute(0, 3, 1, 2),
        )
        for number, size in enumerate(sizes)
    ]


# What the queries say -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_rounds_are_those_of_the_parts(changes):
    made = head(**changes)
    own, levels = made.config, levels_of(made.config)
    rounds = made(levels)
    assert len(rounds) == own.layers + 1
    adapted = []
    for level in range(len(levels)):
        total = torch.zeros(())
        for number, adapter in enumerate(made.adapters):
            total = total + adapter([each.taps[number] for each in levels])[level]
        adapted.append(total)
    expected = made.decoder(adapted, made.pixels(adapted[-1]))
    finest = levels[-1].dense.shape[2:]
    for said, (_, masks) in zip(rounds, expected, strict=True):
        assert said.masks.shape == (2, 5, own.upsample * finest[0], own.upsample * finest[1])
        close(said.masks, masks.detach().double().numpy(), 1e-5)


@pytest.mark.parametrize("views", VIEWS)
def test_before_training_a_query_means_what_the_frozen_model_sees(views):
    made = head(views=views)
    levels = levels_of(made.config)
    for said in made(levels):
        assert said.vectors.shape == said.seen.shape == (2, 5, EMBEDDING)
        torch.testing.assert_close(said.vectors, said.seen, rtol=1e-6, atol=1e-6)
        for image in range(2):
            for query in range(5):
                total = np.zeros(EMBEDDING)
                for level in levels:
                    size = tuple(level.dense.shape[2:])
                    mask = loops.sigmoid(said.masks[image, query].detach().double().numpy())
                    shares = loops.resized(mask, size, antialias=True)
                    mean = np.zeros(EMBEDDING)
                    for y in range(size[0]):
                        for x in range(size[1]):
                            mean += shares[y, x] * level.dense[image, :, y, x].double().numpy()
                    total += mean / shares.sum()
                close(said.seen[image, query], total / math.sqrt(sum(total**2)), 1e-5)


def test_the_correction_is_added_to_what_is_seen():
    made = head()
    shaken(made.correct, seed=3, amount=0.3)
    levels = levels_of(made.config)
    adapted = [adapter([level.taps[number] for level in levels]) for number, adapter in enumerate(made.adapters)]
    maps = [one + other for one, other in zip(*adapted, strict=True)]
    weights = loops.weights_of(made.correct)
    for said, (queries, _) in zip(made(levels), made.decoder(maps, made.pixels(maps[-1])), strict=True):
        assert (said.vectors - said.seen).abs().max() > 0.1
        for image in range(2):
            for query in range(5):
                learned = loops.two_layers(weights, queries[image, query].detach().double().numpy())
                total = said.seen[image, query].double().numpy() + learned
                close(said.vectors[image, query], total / math.sqrt(sum(total**2)), 1e-5)


def test_what_is_seen_does_not_teach_the_masks():
    made = head()
    shaken(made.correct)
    said = made(levels_of(made.config))[-1]
    assert not said.seen.requires_grad and said.vectors.requires_grad and said.masks.requires_grad


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_every_parameter_takes_part(changes):
    """Processes that train together wait for each parameter's gradient."""
    made = head(**changes)
    shaken(made.correct)
    rounds = made(levels_of(made.config))
    logits = [made.class_logits(said.vectors, unit(CLASSES, EMBEDDING)).square().sum() for said in rounds]
    torch.stack(logits + [said.masks.square().sum() for said in rounds]).sum().backward()
    assert [name for name, own in made.named_parameters() if own.grad is None] == []
    assert all(own.grad.abs().max() > 1e-6 for own in (*made.correct.parameters(), made.no_object, made.logit_scale))


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_settings_reach_the_parts(changes):
    made = head(**changes)
    own = made.config
    assert len(made.adapters) == len(own.depths)
    for adapter in made.adapters:
        assert adapter.views == own.views
        assert (adapter.gate is not None) == (own.gate and own.views == "both")
        assert (adapter.fine is not None) == (own.restore and own.views != "global")
    assert made.decoder.masked == own.masked
    assert made.decoder.level.shape == (2 if own.views == "both" else 1, own.width)
    assert made.decoder.layers[0].cross.heads == own.heads


def test_vectors_stay_exact_under_autocast():
    made = head()
    shaken(made.correct)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = made(levels_of(made.config))[-1]
    assert said.vectors.dtype == said.masks.dtype == said.seen.dtype == torch.float32
    torch.testing.assert_close(said.vectors.norm(dim=-1), torch.ones(2, 5), rtol=1e-6, atol=1e-6)


# Classes --------------------------------------------------------------------------------------------------------------


def test_class_logits_are_scaled_cosines_the_last_of_no_object():
    made = head()
    vectors, words = unit(2, 5, EMBEDDING), unit(CLASSES, EMBEDDING, seed=1)
    found = made.class_logits(vectors, words.double())
    assert found.shape == (2, 5, CLASSES + 1)
    none = made.no_object.detach().double().numpy()
    every = [*words.double().numpy(), none / math.sqrt(sum(none**2))]
    factor = math.exp(made.logit_scale.item())
    expected = [[[factor * sum(vector * word) for word in every] for vector in image]
                for image in vectors.double().numpy()]  # fmt: skip
    close(found, np.array(expected), 1e-5)


@pytest.mark.parametrize(("logit", "expected"), [(0.0, 1.0), (math.log(99), 99.0), (math.log(101), 100.0), (9.0, 100)])
def test_the_scale_is_at_most_100(logit, expected):
    made = head()
    with torch.no_grad():
        made.logit_scale.fill_(logit)
    assert made.scale.item() == pytest.approx(expected, rel=1e-6)
    word = unit(1, EMBEDDING)
    assert made.class_logits(word[None], word)[0, 0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_the_scale_begins_as_that_of_clip():
    assert MultiResHead(config(), TAPPED, EMBEDDING).scale.item() == pytest.approx(1 / 0.07)


def test_maps_equal_a_loop():
    made = head()
    said = Round(unit(2, 5, EMBEDDING), noise(2, 5, 4, 6, seed=1).float(), unit(2, 5, EMBEDDING, seed=2))
    words, share = unit(CLASSES, EMBEDDING, seed=3), [0.4, 0.8, 0.0, 1.0]
    grids = ((2, 3), (4, 6))
    levels = [Level([], unit(2, h, w, EMBEDDING, seed=4 + h).permute(0, 3, 1, 2)) for h, w in grids]
    maps = made.maps(said, levels, lambda vectors: (vectors @ words.T).mT, torch.tensor(share)).detach()
    assert maps.shape == (2, CLASSES, 4, 6)
    none = made.no_object.detach().double().numpy()
    every = [*words.double().numpy(), none / math.sqrt(sum(none**2))]
    factor = made.scale.item()
    for image in range(2):
        claimed = np.zeros((CLASSES, 4, 6))
        for query in range(5):
            vector = said.vectors[image, query].double().numpy()
            chances = loops.softmax(np.array([factor * (vector @ word) for word in every]))
            for k in range(CLASSES):
                claimed[k] += chances[k] * loops.sigmoid(said.masks[image, query].double().numpy())
        seen = [
            loops.resized(np.array([word @ level.dense[image].double().flatten(1).numpy() for word in every[:-1]])
                          .reshape(CLASSES, *level.dense.shape[2:]), (4, 6), antialias=False)
            for level in levels
        ]  # fmt: skip
        for y in range(4):
            for x in range(6):
                theirs = loops.softmax(factor * (seen[0] + seen[1])[:, y, x] / 2)
                mine, total = claimed[:, y, x], sum(claimed[:, y, x])
                ours = (mine + 1e-3) / (total + 1e-3 * CLASSES)
                mixed = np.array([ours[k] ** (1 - share[k]) * theirs[k] ** share[k] for k in range(CLASSES)])
                present = min(max(total, 1e-3), 1.0)
                close(maps[image, :, y, x], present * mixed / sum(mixed) + (1 - present) / CLASSES, 1e-5)


# Settings -------------------------------------------------------------------------------------------------------------


def test_settings_survive_json():
    own = config(depths=[0, 2, 5])
    plain = json.loads(json.dumps(own.plain()))
    assert plain == PLAIN | {"depths": [0, 2, 5]}
    assert HeadConfig.from_plain(plain) == own and own.depths == (0, 2, 5)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"views": "windwos"}, ["multires.views=windwos", "windows"]),
        ({"views": ""}, ["multires.views= ", "both"]),
        pytest.param(
            {"views": None},
            ["multires.views=None", "both"],
        ),
        *(
            ({name: value}, [f"multires.{name}={value}", "at least 1"])
            for name in ("window", "scale", "width", "heads", "queries", "layers")
            for value in (0, -3)
        ),
        ({"width": 6, "heads": 2}, ["multires.width=6", "multiple of 4", "multires.heads=2"]),
        ({"width": 8, "heads": 3}, ["multires.width=8", "multires.heads=3"]),
        *(({"upsample": value}, [f"multires.upsample={value}", "1, 2, 4 or 8"]) for value in (0, 3, 16, -2)),
        *(
            ({name: value}, [f"multires.{name}={value}", "0 to 1"])
            for name in ("learned_share", "unseen_share")
            for value in (-0.1, 1.1, math.nan)
        ),
        *(
            ({"depths": value}, ["multires.depths=[", "numbers of blocks"])
            for value in ([], [3, 0], [2, 2], ["a"], [0, 1.5], [True, 2], [None])
        ),
    ],
    ids=str,
)
def test_settings_that_make_no_head(changes, parts):
    refused(lambda: config(**changes), *parts)


@pytest.mark.parametrize(
    "changes",
    [{name: 1} for name in ("window", "scale", "heads", "queries", "layers", "upsample")]
    + [{"learned_share": 0.0, "unseen_share": 1.0}, {"width": 4, "heads": 4}, {"depths": [0]}, {"upsample": 8}],
    ids=str,
)
def test_settings_at_the_limit(changes):
    assert config(**changes).plain() == PLAIN | changes


# A head for a backbone ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


def test_a_head_fits_its_backbone(backbone):
    made = build_head(config(), backbone, ["cat", "dog"])
    assert made.trained == ("cat", "dog") and build_head(config(), backbone).trained == ()
    images = torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    levels = made.look(backbone, lambda patches: torch.nn.functional.normalize(patches, dim=-1), images)
    said = made(levels)[-1]
    assert said.vectors.shape == (1, 5, backbone.width) and said.masks.shape == (1, 5, 8, 12)


@pytest.mark.parametrize("views", VIEWS)
def test_a_head_looks_as_its_settings_say(backbone, views):
    made = build_head(config(views=views, depths=[1, 4]), backbone)
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = made.look(backbone, torch.tanh, images)
    expected = look(backbone, torch.tanh, images, 32, (1, 4), views)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dense.equal(other.dense)
        assert all(own.equal(wanted) for own, wanted in zip(one.taps, other.taps, strict=True))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"depths": [0, 6]}, ["depth 6", "0 to 5"]),
        ({"depths": [-1, 0]}, ["depth -1", "0 to 5"]),
        ({"window": 40}, ["40", "multiples of 16", "32 or 48"]),
        ({"window": 8}, ["8", "multiples of 16"]),
    ],
    ids=str,
)
def test_a_head_that_does_not_fit(backbone, changes, parts):
    assert refused(lambda: build_head(config(**changes), backbone), "backbone tiny", *parts).startswith("multires: ")


def test_a_backbone_without_blocks():
    cnn = make_backbone(timm_name="test_resnet.r160_in1k")
    message = refused(lambda: build_head(config(), cnn), "backbone tiny", "test_resnet.r160_in1k", "give a ViT")
    assert message.startswith("multires: ")
