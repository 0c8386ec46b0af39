import numpy as np
import pytest
import torch

from simzss.models.mask_head.layers import Attention, ChannelNorm, DepthwiseBlock, mlp, sine_positions
from tests.support.models import shaken
from tests.unit.models.mask_head import loops
from tests.unit.models.mask_head.loops import close, noise, weights_of


def test_channels_are_normed_at_each_place():
    layer = shaken(ChannelNorm(6)).double()
    maps = noise(2, 6, 3, 4, mean=2.0)
    found = layer(maps)
    for image in range(2):
        close(found[image], loops.each_place(lambda row: loops.norm(weights_of(layer), row), maps[image].numpy()))


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_a_depthwise_block_equals_a_loop(kernel):
    layer = shaken(DepthwiseBlock(4, kernel)).double()
    maps = noise(2, 4, 5, 3)
    found = layer(maps)
    for image in range(2):
        close(found[image], loops.block(weights_of(layer), maps[image].numpy()))


def test_two_layers_equal_a_loop():
    layer = shaken(mlp(5, 7, 3)).double()
    rows = noise(4, 5)
    close(layer(rows), np.array([loops.two_layers(weights_of(layer), row) for row in rows.numpy()]))


# Attention ------------------------------------------------------------------------------------------------------------


def some(*shape: int) -> torch.Tensor:
    """Which keys may be looked at: about half, another set for each query and image, at least the first."""
    allowed = noise(*shape, seed=9) > 0
    allowed[..., 0] = True
    return allowed


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_equals_a_loop(heads, masked):
    layer = shaken(Attention(8, heads)).double()
    query, key, value = noise(2, 3, 8), noise(2, 5, 8, seed=1), noise(2, 5, 8, seed=2)
    allowed = some(2, 3, 5) if masked else None
    found = layer(query, key, value, allowed)
    for image in range(2):
        own = None if allowed is None else allowed[image].numpy()
        parts = (query[image].numpy(), key[image].numpy(), value[image].numpy())
        close(found[image], loops.attention(weights_of(layer), heads, *parts, own))


def test_what_is_masked_has_no_influence():
    layer = shaken(Attention(8, 2)).double()
    query, key, value = noise(1, 3, 8), noise(1, 5, 8, seed=1), noise(1, 5, 8, seed=2)
    allowed = some(1, 3, 5)
    before = layer(query, key, value, allowed)
    for changed in range(5):
        other_key, other_value = key.clone(), value.clone()
        other_key[0, changed] += 3.0
        other_value[0, changed] -= 2.0
        moved = (layer(query, other_key, other_value, allowed) - before).abs().amax(dim=2)[0] > 1e-6
        assert moved.equal(allowed[0, :, changed])


# Positions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 4), (3, 5, 8), (4, 2, 16), (2, 2, 256)])
def test_positions_equal_a_loop(height, width, channels):
    found = sine_positions(torch.zeros(2, channels, height, width))
    assert found.shape == (height * width, channels)
    close(found, loops.positions(height, width, channels), 1e-5)


def test_positions_of_two_resolutions_are_of_the_same_places():
    coarse = sine_positions(torch.zeros(1, 8, 2, 3)).unflatten(0, (2, 3))
    fine = sine_positions(torch.zeros(1, 8, 6, 9)).unflatten(0, (6, 9))
    torch.testing.assert_close(fine[1::3, 1::3], coarse, rtol=1e-5, atol=1e-5)


def test_no_two_places_are_alike():
    apart = torch.pdist(sine_positions(torch.zeros(1, 16, 14, 14)))
    assert apart.min() > 0.1
