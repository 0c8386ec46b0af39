import pytest
import torch
from transformers import Sam2Model, Sam2VideoConfig, Sam2VideoModel

from simzss.models.sam.load import load_sam
from simzss.models.sam.sam import Prompts
from tests.support.models import refused, shaken
from tests.unit.models.sam.tiny import framed, image, save_second, second_config

SIDE = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_second(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="module")
def sam(folder):
    return load_sam(str(folder))


@pytest.fixture(scope="module")
def theirs(folder):
    return Sam2Model.from_pretrained(folder).eval()


@pytest.mark.parametrize(("height", "width"), [(128, 128), (50, 90), (1, 7)])
def test_embedding_is_transformers_own(sam, theirs, height, width):
    pixels = sam.resize(image(height, width))
    assert pixels.shape == (3, SIDE, SIDE) and not sam.has_attention
    expected = theirs.get_image_embeddings(framed(pixels, SIDE).float())
    encoding = sam.encode(pixels)
    torch.testing.assert_close(encoding.embedding, expected[-1][0], rtol=1e-5, atol=1e-5)
    assert encoding.cells == (8, 8)
    refused(lambda: sam.encode(pixels, attention=True), "no global attention")
    refused(lambda: sam.encode(pixels[:, :64]), "128 x 128", "(3, 64, 128)")


@pytest.mark.parametrize("kinds", ["p", "b", "pb", "m", "bm"])
@pytest.mark.parametrize("multimask", [True, False])
def test_masks_are_transformers_own(sam, theirs, kinds, multimask):
    pixels = sam.resize(image(60, 100))
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(3, 2, 2, generator=generator) if "p" in kinds else None
    labels = torch.tensor([[1, 0], [1, 1], [0, 1]]) if "p" in kinds else None
    boxes = torch.rand(3, 4, generator=generator) if "b" in kinds else None
    masks = torch.randn(3, 32, 32, generator=generator) if "m" in kinds else None
    found = sam.decode(sam.encode(pixels), Prompts(points, labels, boxes, masks), multimask)
    assert found.logits.shape == (3, 3 if multimask else 1, 32, 32)
    for prompt in range(3):
        options = {}
        if points is not None:
            options |= {"input_points": points[prompt][None, None] * SIDE - 0.5,
                        "input_labels": labels[prompt][None, None]}  # fmt: skip
        if boxes is not None:
            options["input_boxes"] = boxes[prompt][None, None] * SIDE - 0.5
        if masks is not None:
            options["input_masks"] = masks[prompt][None, None]
        with torch.no_grad():
            own = theirs(framed(pixels, SIDE).float(), multimask_output=multimask, **options)
        torch.testing.assert_close(found.logits[prompt], own.pred_masks[0, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.iou[prompt], own.iou_scores[0, 0], rtol=1e-4, atol=1e-4)


def test_model_of_videos_serves_as_well(tmp_path, caplog):
    """As the authors publish it: with the memory that single images do not need, under the videos' type."""
    torch.manual_seed(4)
    parts = second_config().to_dict()
    options = {name: parts[name] for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}
    sizes = {"memory_attention_hidden_size": 32, "memory_attention_feed_forward_hidden_size": 32,
             "memory_encoder_hidden_size": 32, "memory_fuser_embed_dim": 32, "mask_downsampler_embed_dim": 32,
             "memory_fuser_intermediate_dim": 32, "image_size": SIDE,
             "memory_attention_rope_feat_sizes": [8, 8]}  # fmt: skip
    video = shaken(Sam2VideoModel(Sam2VideoConfig(**options, **sizes)))
    video.save_pretrained(tmp_path)
    sam = load_sam(str(tmp_path))
    assert not caplog.records
    pixels = sam.resize(image(40, 60))
    expected = video.eval().get_image_embeddings(framed(pixels, SIDE).float())[-1]
    torch.testing.assert_close(sam.encode(pixels).embedding, expected[0], rtol=1e-5, atol=1e-5)


def test_bfloat16(folder, sam):
    low = load_sam(str(folder), "bf16-mixed")
    pixels = sam.resize(image(60, 100))
    prompts = Prompts(points=torch.tensor([[[0.3, 0.6]]]), labels=torch.ones(1, 1).long())
    results = []
    for model in (sam, low):
        encoding = model.encode(pixels)
        masks = model.decode(encoding, prompts, multimask=True)
        results.append([encoding.embedding, masks.logits, masks.iou])
    for full, rounded in zip(*results, strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < (full - rounded).abs().max() < 0.1 * full.abs().max()
    refused(lambda: low.use_precision("32-true"), "precision=32-true")
