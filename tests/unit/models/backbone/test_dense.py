import pytest
import torch
from timm.models.vision_transformer import Block

from simzss.models.backbone import dense
from simzss.models.backbone.dense import proxy_attention, proxy_last_block
from tests.support.loops import guided, guided_block
from tests.support.models import shaken


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    """Guides whose mean cosine is above zero, as that of real features is."""
    return noise(*shape, seed=seed) + 0.6


def close(found: torch.Tensor, expected: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


# Similarities ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "gain"), [(1.2, 3.0), (1.0, 10.0), (0.0, 1.0), (3.0, 0.5), (0.5, 0.0)])
@pytest.mark.parametrize("count", [1, 2, 24])
def test_attention_equals_a_loop(count, shift, gain):
    guide, values = features(2, count, 6), noise(2, count, 5, seed=1)
    found = proxy_attention(guide, values, shift, gain)
    assert found.shape == (2, count, 5) and found.dtype == torch.float32
    close(found, [guided(guide[image], values[image], shift, gain) for image in range(2)])


def test_some_patches_are_left_out_and_some_are_not():
    guide = features(1, 24, 6)
    shares = proxy_attention(guide, torch.eye(24)[None])[0]
    assert 0.2 < (shares == 0).float().mean() < 0.8
    assert (shares.diagonal() > 0).all()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(24))
    # The settings do something.
    assert (proxy_attention(guide, torch.eye(24)[None], gain=6.0)[0] - shares).abs().max() > 0.05
    assert (proxy_attention(guide, torch.eye(24)[None], shift=0.8)[0] - shares).abs().max() > 0.05


def test_the_length_of_a_guide_vector_does_not_matter():
    guide, values = features(1, 12, 6), noise(1, 12, 5, seed=1)
    scaled = guide * torch.linspace(0.01, 300, 12)[None, :, None]
    torch.testing.assert_close(proxy_attention(scaled, values), proxy_attention(guide, values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 5, 11, 23])
def test_a_few_rows_at_a_time_are_the_whole(rows, monkeypatch):
    guide, values = features(2, 23, 6), noise(2, 23, 5, seed=1)
    whole = proxy_attention(guide, values)
    held = []
    softmax = torch.Tensor.softmax

    def watching(scores, *arguments, **options):
        held.append(tuple(scores.shape))
        return softmax(scores, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "softmax", watching)
    monkeypatch.setattr(dense, "_CHUNK", rows * 2 * 23)
    found = proxy_attention(guide, values)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
    close(found, [guided(guide[image], values[image], 1.2, 3.0) for image in range(2)])
    assert max(shape[1] for shape in held) == max(1, rows) and sum(shape[1] for shape in held) == 23


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_a_patch_keeps_itself_where_all_are_alike(rows, monkeypatch):
    """Every similarity is below `shift` times the mean then, and a row without any would be NaN."""
    monkeypatch.setattr(dense, "_CHUNK", rows * 2 * 9)
    guide = torch.cat([features(1, 1, 6).expand(1, 9, 6), features(1, 9, 6, seed=2)])
    values = noise(2, 9, 5, seed=1)
    found = proxy_attention(guide, values)
    torch.testing.assert_close(found[0], values[0])
    close(found[1:], [guided(guide[1], values[1], 1.2, 3.0)])  # the other image of the batch is as ever


def test_guides_of_zeros():
    """They are like nothing, themselves included: where all are zero, nothing is below the mean."""
    values = noise(2, 9, 5, seed=1)
    guide = torch.stack([torch.zeros(9, 6), features(9, 6)])
    guide[1, 4] = 0
    found = proxy_attention(guide, values)
    assert found.isfinite().all()
    torch.testing.assert_close(found[0], values[0].mean(dim=0).expand(9, 5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1, 4], values[1, 4])
    close(found, [guided(guide[image], values[image], 1.2, 3.0) for image in range(2)])


def test_similarities_are_not_rounded():
    """Half precision of what comes in, and autocast around, do not reach the similarities."""
    guide, values = features(2, 20, 6).bfloat16(), noise(2, 20, 5, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = proxy_attention(guide, values)
    assert found.dtype == torch.float32
    close(found, [guided(guide[image], values[image], 1.2, 3.0) for image in range(2)])


# The block ------------------------------------------------------------------------------------------------------------


def block(**kind) -> Block:
    torch.manual_seed(0)
    made = Block(12, 3, **({"qkv_bias": True} | kind)).eval()
    shaken(made, amount=0.3)
    return made


def check_block(made: Block, tokens: torch.Tensor, prefix: int, grid: tuple[int, int], guide: torch.Tensor) -> None:
    with torch.no_grad():
        found = proxy_last_block(made, tokens, prefix, grid, guide, 1.2, 3.0)
    assert found.shape == (2, guide.shape[2] * guide.shape[3], 12)
    weights = dict(made.state_dict())
    expected = [guided_block(weights, tokens[i], grid, guide[i], 1.2, 3.0, made.norm1.eps) for i in range(2)]
    assert torch.stack(expected).abs().mean() > 0.1  # not a comparison of zeros
    close(found, expected)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("grid", "guiding"), [((3, 4), (3, 4)), ((3, 4), (5, 2)), ((4, 3), (7, 6)), ((2, 5), (5, 2)), ((5, 4), (1, 1))]
)
def test_last_block_equals_a_loop(grid, guiding, prefix):
    tokens = noise(2, prefix + grid[0] * grid[1], 12)
    check_block(block(), tokens, prefix, grid, features(2, 6, *guiding, seed=1))


@pytest.mark.parametrize(
    "kind",
    [{"init_values": 0.7}, {"scale_attn_norm": True}, {"qk_norm": True, "init_values": 1.0}, {"qkv_bias": False}],
    ids=["layer scale", "norm before the projection", "normed queries", "no bias"],
)
def test_kinds_of_blocks(kind):
    check_block(block(**kind), noise(2, 1 + 12, 12), 1, (3, 4), features(2, 6, 2, 5, seed=1))


def test_prefix_tokens_take_no_part():
    tokens = noise(2, 5 + 12, 12)
    other = torch.cat([noise(2, 5, 12, seed=9), tokens[:, 5:]], dim=1)
    guide = features(2, 6, 3, 4, seed=1)
    with torch.no_grad():
        first, second = (proxy_last_block(block(), rows, 5, (3, 4), guide, 1.2, 3.0) for rows in (tokens, other))
    assert torch.equal(first, second)


def test_a_block_of_half_precision():
    tokens, guide = noise(2, 1 + 12, 12), features(2, 6, 5, 2, seed=1)
    with torch.no_grad():
        exact = proxy_last_block(block(), tokens, 1, (3, 4), guide, 1.2, 3.0)
        rounded = proxy_last_block(block().bfloat16(), tokens.bfloat16(), 1, (3, 4), guide.bfloat16(), 1.2, 3.0)
    assert rounded.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(rounded.float(), exact, dim=-1).min() > 0.99
