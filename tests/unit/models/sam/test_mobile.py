"""MobileSAM against plain functions in float64 from its official weights by name."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from simzss.models.sam.load import load_sam
from simzss.models.sam.mobile import mobile_sam
from simzss.models.sam.sam import Prompts
from tests.support.models import Harmful, refused
from tests.unit.models.sam.official import Official
from tests.unit.models.sam.tiny import framed, image, mobile_shapes, mobile_weights

SIDE = 144  # 9 x 9 cells: windows of 7 and of 14 are both padded
present = pytest.mark.skipif(
    not {"SIMZSS_DATA", "SIMZSS_WEIGHTS"} <= os.environ.keys(), reason="SIMZSS_DATA and SIMZSS_WEIGHTS are not set"
)


@pytest.fixture(scope="module")
def sam():
    return mobile_sam("random", mobile_weights(), SIDE)


@pytest.fixture(scope="module")
def exact():
    """The same in float64 but for the code of places, so that even another epsilon shows."""
    return mobile_sam("random", mobile_weights(), SIDE).double()


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max())


# Against plain functions in float64 ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(90, 144), (144, 144), (301, 57), (1, 500)])
def test_encoder(sam, height, width):
    pixels = sam.resize(image(height, width))
    expected = Official(mobile_weights(), SIDE).embedding(framed(pixels, SIDE))
    found = sam.encode(pixels)
    rows, columns = -(-pixels.shape[1] // 16), -(-pixels.shape[2] // 16)
    assert apart(found.embedding, expected[0, :, :rows, :columns]) < 2e-5
    assert found.attention is None and found.embedding.dtype == torch.float32


@pytest.mark.parametrize("kinds", ["p", "b", "m", "pb", "pm", "bm", "pbm"])
@pytest.mark.parametrize("multimask", [True, False])
def test_decoder(exact, kinds, multimask):
    """Two prompts of the kinds that the letters name: points, boxes, masks."""
    official = Official(mobile_weights(), SIDE)
    pixels = exact.resize(image(100, 150, seed=3))
    height, width = pixels.shape[1:]
    encoding = exact.encode(pixels)
    generator = torch.Generator().manual_seed(5)
    points = torch.rand(2, 3, 2, generator=generator) if "p" in kinds else None
    labels = torch.tensor([[1, 0, 1], [0, 1, 1]]) if "p" in kinds else None
    boxes = torch.rand(2, 4, generator=generator) if "b" in kinds else None
    # At the size of the decoder's own grid nothing is resampled; that is tested by itself.
    rows, columns = height // 4, width // 4
    masks = 3 * torch.randn(2, rows, columns, generator=generator) if "m" in kinds else None
    found = exact.decode(encoding, Prompts(points, labels, boxes, masks), multimask)
    assert len(found.logits) == len(found.iou) == 2
    embedding = encoding._frame  # ours, so that the folding of the encoder, done in float32, does not count
    share = (width / official.side, height / official.side)
    for prompt in range(2):
        places = []
        if points is not None:
            labelled = zip(points[prompt].tolist(), labels[prompt].tolist(), strict=True)
            places = [(x * share[0], y * share[1], label) for (x, y), label in labelled]
        box = None
        if boxes is not None:
            box = tuple(value * share[axis % 2] for axis, value in enumerate(boxes[prompt].tolist()))
        mask = None
        if masks is not None:
            mask = torch.zeros(official.side // 4, official.side // 4)
            mask[:rows, :columns] = masks[prompt]
        logits, iou = official.masks(embedding, official.tokens(places, box), official.dense(mask))
        chosen = slice(1, 4) if multimask else slice(0, 1)
        assert apart(found.logits[prompt], logits[chosen]) < 3e-5
        assert apart(found.iou[prompt], iou[chosen]) < 3e-5


def test_threads_share_a_model(sam):
    images = [sam.resize(image(100 + seed, 144, seed)) for seed in range(6)]
    fresh = mobile_sam("fresh", mobile_weights(), SIDE)  # timm keeps tables of an encoder that has run
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(fresh.encode, images))
    for pixels, encoding in zip(images, together, strict=True):
        assert torch.equal(sam.encode(pixels).embedding, encoding.embedding)


# What a file may be ---------------------------------------------------------------------------------------------------


def test_file_of_weights(tmp_path):
    torch.save(mobile_weights(), tmp_path / "mobile_sam.pt")
    sam = load_sam(str(tmp_path / "mobile_sam.pt"))
    assert sam.size == 1024 and not sam.has_attention
    assert sam.fingerprint == mobile_sam("again", mobile_weights(), SIDE).fingerprint
    other = dict(mobile_weights()) | {"prompt_encoder.no_mask_embed.weight": torch.zeros(1, 256)}
    assert sam.fingerprint != mobile_sam("other", other, SIDE).fingerprint
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    assert not any(module.training for module in sam.train().modules())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("image_encoder.layers.2.blocks.3.attn.qkv.bias", None, "vision_encoder.stages.2.blocks.3.attn.qkv.bias"),
        ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", None, "shared_embedding.positional_embedding"),
        ("image_encoder.layers.0.blocks.0.conv1.bn.running_var", None, "running_var"),
        ("image_encoder.neck.2.weight", torch.zeros(256, 256, 1, 1), "(256, 256, 1, 1), not (256, 256, 3, 3)"),
        ("image_encoder.layers.2.blocks.0.attn.attention_biases", torch.zeros(5, 49), "attention_biases"),
        ("image_encoder.layers.2.blocks.6.attn.qkv.bias", torch.zeros(480), "image_encoder.layers.2.blocks.6"),
        ("mask_decoder.pred_obj_score_head.weight", torch.zeros(1), "mask_decoder.pred_obj_score_head.weight"),
    ],
)
def test_tensors_that_do_not_fit(name, change, message):
    weights = dict(mobile_weights())
    if change is None:
        del weights[name]
    else:
        weights[name] = change
    refused(lambda: mobile_sam("my.pt", weights, SIDE), "my.pt", message)


def test_classifier_and_tables_are_of_no_use():
    weights = {name: value for name, value in mobile_weights().items() if "head." not in name or "iou" in name}
    weights["image_encoder.layers.1.blocks.0.attn.attention_bias_idxs"] = torch.zeros(49, 49, dtype=torch.long)
    assert mobile_sam("fewer", weights, SIDE).fingerprint == mobile_sam("all", mobile_weights(), SIDE).fingerprint


def test_files_that_are_no_weights(tmp_path):
    made = tmp_path / "made"
    contents = {"harmful": {"a": Harmful(made)}, "list": [torch.zeros(2)], "named": {"epoch": 3}, "empty": {}}
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Harmful(made)))
    (tmp_path / "text.pt").write_text("no weights\n")
    (tmp_path / "nothing.pt").touch()
    torch.save(mobile_weights(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    for name in (*contents, "plain", "text", "nothing", "truncated"):
        file = str(tmp_path / f"{name}.pt")
        refused(lambda file=file: load_sam(file), file)
    assert not made.exists()


# The real weights -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_file():
    return Path(os.environ["SIMZSS_WEIGHTS"]) / "mobile_sam.pt"


@pytest.mark.real
@present
def test_real_file(real_file):
    """Names and shapes are those of our tables, and both halves are the official functions."""
    weights = torch.load(real_file, weights_only=True)
    assert {name: tuple(value.shape) for name, value in weights.items()} == mobile_shapes()
    sam = load_sam(str(real_file))
    photos = sorted((Path(os.environ["SIMZSS_DATA"]) / "VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))
    pixels = sam.resize(Image.open(photos[2]))
    official = Official(weights, 1024)
    expected = official.embedding(framed(pixels, 1024))
    encoding = sam.encode(pixels)
    assert apart(encoding.embedding, expected[0, :, :48]) < 2e-5
    found = sam.decode(encoding, Prompts(points=torch.tensor([[[0.5, 0.5]]]), labels=torch.ones(1, 1).long()), True)
    tokens = official.tokens([(0.5, 0.5 * 768 / 1024, 1)], None)
    logits, iou = official.masks(expected, tokens, official.dense(None))
    assert apart(found.logits[0], logits[1:]) < 1e-4 and apart(found.iou[0], iou[1:]) < 1e-4
    # The middle of this photo is a dog on a chair: the masks are parts of it, itself, and it on its chair.
    areas = (found.at((375, 500))[0] > 0).double().mean(dim=(1, 2))
    assert found.iou.max() > 0.95 and 0.01 < areas[0] < areas[1] < areas[2] < 0.6
    low = load_sam(str(real_file), "bf16-mixed")
    pixels = sam.resize(Image.open(photos[1]))
    encoding, rounded = sam.encode(pixels), low.encode(pixels)
    assert apart(rounded.embedding, encoding.embedding.double()) < 0.1
    box = Prompts(boxes=torch.tensor([[0.32, 0.25, 0.70, 0.70]]))
    masks = [model.decode(own, box).at((375, 500))[0, 0] > 0 for model, own in ((sam, encoding), (low, rounded))]
    assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.97
