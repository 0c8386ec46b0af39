"""SAM and SAM 2 against transformers' own models with the same weights, and SAM's attention against loops."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from transformers import Sam2Model, Sam2VideoConfig, Sam2VideoModel, SamModel

from simzss.models.sam.load import load_sam
from simzss.models.sam.sam import PROMPTS_AT_ONCE, Prompts
from tests.support.models import refused, shaken
from tests.unit.models.sam.tiny import PATCH, SIDE, framed, image, save_first, save_second, second_config

KINDS = {"sam": (save_first, SamModel, SIDE), "sam2": (save_second, Sam2Model, 128)}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Folder, our model and transformers' own (whose attention gives its probabilities) of each kind."""
    found = {}
    for kind, (save, family, _) in KINDS.items():
        folder = save(tmp_path_factory.mktemp(kind))
        attention = {"attn_implementation": "eager"} if kind == "sam" else {}
        found[kind] = folder, load_sam(str(folder)), family.from_pretrained(folder, **attention).eval()
    return found


@pytest.fixture
def first(pairs):
    return pairs["sam"][1:]


# Both kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (43, 64), (100, 37), (1, 300)])
@pytest.mark.parametrize("kind", KINDS)
def test_embedding(pairs, kind, height, width):
    _, sam, theirs = pairs[kind]
    side = KINDS[kind][2]
    pixels = sam.resize(image(height, width))
    expected = theirs.get_image_embeddings(framed(pixels, side).float())
    expected = (expected if kind == "sam" else expected[-1])[0]
    patch = side // expected.shape[1]
    rows, columns = math.ceil(pixels.shape[1] / patch), math.ceil(pixels.shape[2] / patch)
    for attention in [True, False] if kind == "sam" else [False]:
        encoding = sam.encode(pixels, attention)
        torch.testing.assert_close(encoding.embedding, expected[:, :rows, :columns], rtol=1e-5, atol=1e-5)
        assert encoding.cells == (pixels.shape[1] / patch, pixels.shape[2] / patch)
        assert (encoding.attention is not None) == attention
    if kind == "sam2":
        assert pixels.shape == (3, side, side)  # stretched
        refused(lambda: sam.encode(pixels, attention=True), "no global attention")
        refused(lambda: sam.encode(pixels[:, :64]), "128 x 128", "(3, 64, 128)")


@pytest.mark.parametrize("prompts", ["p", "b", "pb", "m", "pm", "bm"])
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_masks(pairs, kind, prompts, multimask):
    _, sam, theirs = pairs[kind]
    side = KINDS[kind][2]
    pixels = sam.resize(image(48, 64))
    height, width = pixels.shape[1:]
    rows, columns = height * 32 // side, width * 32 // side
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(3, 2, 2, generator=generator) if "p" in prompts else None
    labels = torch.tensor([[1, 0], [1, 1], [0, 1]]) if "p" in prompts else None
    boxes = torch.rand(3, 4, generator=generator) if "b" in prompts else None
    masks = torch.randn(3, rows, columns, generator=generator) if "m" in prompts else None
    found = sam.decode(sam.encode(pixels), Prompts(points, labels, boxes, masks), multimask)
    assert found.logits.shape == (3, 3 if multimask else 1, 32, 32)
    scale = torch.tensor([width, height])  # transformers' processors give indices of pixels: the first centre is 0
    for prompt in range(3):
        # One prompt by itself: a mask prompt is for a whole image there.
        options = {}
        if points is not None:
            options |= {"input_points": (points[prompt] * scale - 0.5)[None, None],
                        "input_labels": labels[prompt][None, None]}  # fmt: skip
        if boxes is not None:
            options["input_boxes"] = (boxes[prompt] * scale.repeat(2) - 0.5)[None, None]
        if masks is not None:
            options["input_masks"] = F.pad(masks[prompt], (0, 32 - columns, 0, 32 - rows))[None, None]
        with torch.no_grad():
            own = theirs(framed(pixels, side).float(), multimask_output=multimask, **options)
        torch.testing.assert_close(found.logits[prompt], own.pred_masks[0, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.iou[prompt], own.iou_scores[0, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(pairs, kind):
    folder, sam, _ = pairs[kind]
    low = load_sam(str(folder), "bf16-mixed")
    assert low.fingerprint == sam.fingerprint
    assert low.model.prompt_encoder.shared_embedding.positional_embedding.dtype == torch.float32
    pixels, prompts = sam.resize(image(43, 64)), Prompts(boxes=torch.tensor([[0.2, 0.1, 0.6, 0.9]]))
    results = []
    for model in (sam, low):
        encoding = model.encode(pixels, attention=kind == "sam")
        masks = model.decode(encoding, prompts, multimask=True)
        last = encoding.attention
        results.append([encoding.embedding, masks.logits, masks.iou, *([last.rows(0, 5), last.values] if last else [])])
    for full, rounded in zip(*results, strict=True):
        assert rounded.dtype == torch.float32
        assert 0 < (full - rounded).abs().max() < 0.1 * full.abs().max()
    refused(lambda: low.use_precision("32-true"), "precision=32-true", str(folder))


def test_threads_share_a_model(first):
    sam, _ = first
    images = [sam.resize(image(30 + 5 * seed, 64, seed)) for seed in range(8)]
    alone = [sam.encode(pixels, attention=True) for pixels in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pixels: sam.encode(pixels, attention=True), images))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.embedding, other.embedding)
        assert torch.equal(one.attention.rows(0, 8), other.attention.rows(0, 8))


def test_many_prompts_are_decoded_in_parts(first):
    sam, _ = first
    encoding = sam.encode(sam.resize(image(64, 50)))
    boxes = torch.rand(PROMPTS_AT_ONCE + 3, 4, generator=torch.Generator().manual_seed(2))
    found = sam.decode(encoding, Prompts(boxes=boxes))
    for index in (0, PROMPTS_AT_ONCE - 1, PROMPTS_AT_ONCE, PROMPTS_AT_ONCE + 2):
        one = sam.decode(encoding, Prompts(boxes=boxes[index : index + 1]))
        torch.testing.assert_close(found.logits[index], one.logits[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.iou[index], one.iou[0], rtol=1e-4, atol=1e-5)
    none = sam.decode(encoding, Prompts(boxes=boxes[:0]), multimask=True)
    assert none.logits.shape == (0, 3, 32, 32) and none.iou.shape == (0, 3)
    assert none.at((20, 30)).shape == (0, 3, 20, 30)


def test_model_of_videos_serves_as_well(tmp_path, caplog):
    """As the authors publish it: with the memory that single images do not need, under the videos' type."""
    torch.manual_seed(4)
    parts = second_config().to_dict()
    options = {name: parts[name] for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")}
    sizes = {"memory_attention_hidden_size": 32, "memory_attention_feed_forward_hidden_size": 32,
             "memory_encoder_hidden_size": 32, "memory_fuser_embed_dim": 32, "mask_downsampler_embed_dim": 32,
             "memory_fuser_intermediate_dim": 32, "image_size": 128,
             "memory_attention_rope_feat_sizes": [8, 8]}  # fmt: skip
    video = shaken(Sam2VideoModel(Sam2VideoConfig(**options, **sizes)))
    video.save_pretrained(tmp_path)
    sam = load_sam(str(tmp_path))
    assert not caplog.records
    pixels = sam.resize(image(40, 60))
    expected = video.eval().get_image_embeddings(framed(pixels, 128).float())[-1]
    torch.testing.assert_close(sam.encode(pixels).embedding, expected[0], rtol=1e-5, atol=1e-5)


# The last global attention of SAM -------------------------------------------------------------------------------------


def by_loops(model, pixels) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (heads, frame, frame) and values of the middle layer, cell by cell in float64."""
    encoder = model.vision_encoder
    with torch.no_grad():
        cells = encoder.patch_embed(framed(pixels, SIDE).float()) + encoder.pos_embed
        cells = encoder.layers[1].layer_norm1(encoder.layers[0](cells))[0].double()
    attention = encoder.layers[1].attn
    weight, bias = attention.qkv.weight.double(), attention.qkv.bias.double()
    down, across = attention.rel_pos_h.double(), attention.rel_pos_w.double()
    side, channels = cells.shape[0], cells.shape[2]
    heads, depth = 2, channels // 2
    probabilities = torch.zeros(heads, side**2, side**2, dtype=torch.float64)
    values = torch.zeros(heads, side**2, depth, dtype=torch.float64)
    for head in range(heads):
        part = [slice(channels * kind + depth * head, channels * kind + depth * (head + 1)) for kind in range(3)]
        query, key, value = ((cells @ weight[rows].T + bias[rows]).reshape(side**2, depth) for rows in part)
        values[head] = value
        for one in range(side**2):
            y, x = divmod(one, side)
            logits = torch.stack(
                [
                    query[one] @ key[v * side + u] / math.sqrt(depth)
                    + query[one] @ down[y - v + side - 1]
                    + query[one] @ across[x - u + side - 1]
                    for v in range(side)
                    for u in range(side)
                ]
            )
            probabilities[head, one] = logits.exp() / logits.exp().sum()
    return probabilities, values


def of_image(table: torch.Tensor, dim: int, grid: tuple[int, int], side: int) -> torch.Tensor:
    """Those entries along an axis of the frame's cells that show the image."""
    return table.index_select(dim, torch.tensor([y * side + x for y in range(grid[0]) for x in range(grid[1])]))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (43, 64), (64, 11)])
def test_attention(first, height, width):
    sam, theirs = first
    pixels = sam.resize(image(height, width))
    last = sam.encode(pixels, attention=True).attention
    grid, side = (math.ceil(height / PATCH), math.ceil(width / PATCH)), SIDE // PATCH
    assert last.grid == grid and last.heads == 2
    count = grid[0] * grid[1]
    found = last.rows(0, count)
    assert found.shape == (2, count, count) and found.dtype == torch.float32
    probabilities, values = by_loops(theirs, pixels)
    seen = of_image(of_image(probabilities, 1, grid, side), 2, grid, side)
    torch.testing.assert_close(found.double(), seen, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(last.values.double(), of_image(values, 1, grid, side), rtol=1e-4, atol=1e-5)
    if grid != (side, side):
        assert found.sum(-1).max() < 1  # the rest went to padding
    with torch.no_grad():
        outputs = theirs.vision_encoder(framed(pixels, SIDE).float(), output_attentions=True)
    own = of_image(of_image(outputs.attentions[1].reshape(2, side**2, side**2), 1, grid, side), 2, grid, side)
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-6)


def test_attention_in_chunks(first):
    sam, _ = first
    last = sam.encode(sam.resize(image(43, 64)), attention=True).attention
    count = last.grid[0] * last.grid[1]
    whole = last.rows(0, count)
    parts = [last.rows(start, min(start + 7, count)) for start in range(0, count, 7)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=1e-7)
    assert last.rows(5, 6).shape == (2, 1, count)


def test_models_without_global_attention_or_relative_positions(tmp_path):
    windows = load_sam(str(save_first(tmp_path / "windows", global_attn_indexes=[])))
    assert not windows.has_attention
    pixels = windows.resize(image(30, 40))
    refused(lambda: windows.encode(pixels, attention=True), str(tmp_path), "no global attention")
    plain = load_sam(str(save_first(tmp_path / "plain", use_rel_pos=False, use_abs_pos=False)))
    last = plain.encode(pixels, attention=True).attention
    assert last.down is None
    query, key = last.queries, last.keys
    expected = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)[..., : last.grid[0] * last.grid[1]]
    torch.testing.assert_close(last.rows(0, len(query[0])), expected, rtol=1e-5, atol=1e-7)
