"""Attention by proxy features against loops in float64."""

import pytest
import torch
from timm.models.vision_transformer import Block

from simzss.models.backbone.dense import proxy_attention, proxy_last_block
from tests.support.loops import proxy_average, proxy_block
from tests.support.models import shaken


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    """Proxy features whose mean cosine is above zero, as that of real features is."""
    return noise(*shape, seed=seed) + 0.6


def close(found: torch.Tensor, expected: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


def by_loop(proxy: torch.Tensor, values: torch.Tensor, beta: float = 1.2, gamma: float = 3.0) -> list[torch.Tensor]:
    return [proxy_average(own, value, beta, gamma) for own, value in zip(proxy, values, strict=True)]


# Similarities ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beta", "gamma"), [(1.2, 3.0), (1.0, 10.0), (0.0, 1.0), (3.0, 0.5), (0.5, 0.0)])
@pytest.mark.parametrize("count", [1, 2, 24])
def test_attention_equals_a_loop(count, beta, gamma):
    proxy, values = features(2, count, 6), noise(2, count, 5, seed=1)
    found = proxy_attention(proxy, values, beta, gamma)
    assert found.shape == (2, count, 5) and found.dtype == torch.float32
    close(found, by_loop(proxy, values, beta, gamma))
    scaled = proxy * torch.linspace(0.01, 300, count)[None, :, None]  # lengths do not matter
    torch.testing.assert_close(proxy_attention(scaled, values, beta, gamma), found, rtol=1e-5, atol=1e-5)


def test_some_patches_are_left_out_and_some_are_not():
    shares = proxy_attention(features(1, 24, 6), torch.eye(24)[None])[0]
    assert 0.2 < (shares == 0).float().mean() < 0.8
    assert (shares.diagonal() > 0).all()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(24))


@pytest.mark.parametrize("rows", [0, 1, 5, 11, 23])
def test_a_few_rows_at_a_time_are_the_whole(rows):
    proxy, values = features(2, 23, 6), noise(2, 23, 5, seed=1)
    found = proxy_attention(proxy, values, elements=rows * 2 * 23)
    torch.testing.assert_close(found, proxy_attention(proxy, values), rtol=1e-6, atol=1e-6)
    close(found, by_loop(proxy, values))


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_a_patch_keeps_itself_where_all_are_alike(rows):
    """Every similarity is below `beta` times the mean then, and a row without any would be NaN."""
    proxy = torch.cat([features(1, 1, 6).expand(1, 9, 6), features(1, 9, 6, seed=2)])
    values = noise(2, 9, 5, seed=1)
    found = proxy_attention(proxy, values, elements=rows * 2 * 9)
    torch.testing.assert_close(found[0], values[0])
    close(found[1:], by_loop(proxy[1:], values[1:]))  # the other image of the batch is as ever


def test_features_of_zeros():
    """They are like nothing, themselves included: where all are zero, nothing is below the mean."""
    values = noise(2, 9, 5, seed=1)
    proxy = torch.stack([torch.zeros(9, 6), features(9, 6)])
    proxy[1, 4] = 0
    found = proxy_attention(proxy, values)
    assert found.isfinite().all()
    torch.testing.assert_close(found[0], values[0].mean(dim=0).expand(9, 5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1, 4], values[1, 4])
    close(found, by_loop(proxy, values))


def test_similarities_are_not_rounded():
    """Half precision of what comes in, and autocast around, do not reach the similarities."""
    proxy, values = features(2, 20, 6).bfloat16(), noise(2, 20, 5, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = proxy_attention(proxy, values)
    assert found.dtype == torch.float32
    close(found, by_loop(proxy, values))


# The block ------------------------------------------------------------------------------------------------------------


def block(**kind) -> Block:
    torch.manual_seed(0)
    made = Block(12, 3, **({"qkv_bias": True} | kind)).eval()
    shaken(made, amount=0.3)
    return made


def check_block(made: Block, tokens: torch.Tensor, prefix: int, grid: tuple[int, int], proxy: torch.Tensor) -> None:
    with torch.no_grad():
        found = proxy_last_block(made, tokens, prefix, grid, proxy, 1.2, 3.0)
    assert found.shape == (2, proxy.shape[2] * proxy.shape[3], 12)
    weights = dict(made.state_dict())
    expected = [proxy_block(weights, tokens[i], grid, proxy[i], 1.2, 3.0, made.norm1.eps) for i in range(2)]
    assert torch.stack(expected).abs().mean() > 0.1  # not a comparison of zeros
    close(found, expected)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(
    ("grid", "other"), [((3, 4), (3, 4)), ((3, 4), (5, 2)), ((4, 3), (7, 6)), ((2, 5), (5, 2)), ((5, 4), (1, 1))]
)
def test_last_block_equals_a_loop(grid, other, prefix):
    tokens = noise(2, prefix + grid[0] * grid[1], 12)
    check_block(block(), tokens, prefix, grid, features(2, 6, *other, seed=1))


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
    proxy = features(2, 6, 3, 4, seed=1)
    with torch.no_grad():
        first, second = (proxy_last_block(block(), rows, 5, (3, 4), proxy, 1.2, 3.0) for rows in (tokens, other))
    assert torch.equal(first, second)


def test_a_block_of_half_precision():
    tokens, proxy = noise(2, 1 + 12, 12), features(2, 6, 5, 2, seed=1)
    with torch.no_grad():
        exact = proxy_last_block(block(), tokens, 1, (3, 4), proxy, 1.2, 3.0)
        rounded = proxy_last_block(block().bfloat16(), tokens.bfloat16(), 1, (3, 4), proxy.bfloat16(), 1.2, 3.0)
    assert rounded.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(rounded.float(), exact, dim=-1).min() > 0.99
