import numpy as np
import pytest
import torch

from simzss.features.quantise import bytes_per_image, dequantise, pack, quantise
from simzss.models.features import ImageFeatures


def spread(*shape, seed=0):
    """Vectors of very different length."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*shape, generator=generator)
    return values * 10 ** (6 * torch.rand(*shape[:-1], 1, generator=generator) - 3)


def test_every_number_is_within_half_a_step_and_none_is_nearer():
    values = spread(5, 7, 33)
    levels, scale = quantise(values)
    assert (levels.dtype, levels.shape, scale.dtype, scale.shape) == (torch.int8, (5, 7, 33), torch.float32, (5, 7))
    exact = values.double().numpy()
    step = np.abs(exact).max(axis=-1, keepdims=True) / 127
    found = levels.double().numpy() * step
    assert (np.abs(found - exact) <= step / 2 * (1 + 1e-5)).all()
    every = np.arange(-127, 128) * step[..., None]
    nearest = np.abs(every - exact[..., None]).min(axis=-1)
    np.testing.assert_allclose(np.abs(found - exact), nearest, atol=1e-5 * step.max())
    assert levels.abs().amax(dim=-1).eq(127).all()  # all of the range is used
    np.testing.assert_allclose(dequantise(levels, scale).double().numpy(), found, rtol=1e-6)


def test_odd_vectors():
    values = torch.tensor([[0.0, 0.0], [1e-44, 0.0], [3e38, -3e38], [float("nan"), 1.0], [float("inf"), 1.0]])
    back = dequantise(*quantise(values))
    torch.testing.assert_close(back[:3], values[:3], rtol=1e-6, atol=1e-40)
    assert not back[3:].isfinite().all(dim=-1).any()


def test_types():
    levels, scale = quantise(spread(2, 8).bfloat16())
    assert dequantise(levels, scale, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "float32"])
def test_pack(storage):
    features = ImageFeatures(spread(3, 16), spread(3, 4, 16, seed=1), (2, 2))
    packed = pack(features, storage)
    assert sum(tensor.nbytes for tensor in packed.values()) == 3 * bytes_per_image(storage, 1, 4, 16)
    if storage == "int8":
        assert packed["patches"].equal(quantise(features.patches)[0])
        assert packed["scale"].equal(quantise(features.patches)[1])
        assert packed["cls"].equal(features.cls.bfloat16())
        return
    dtype = getattr(torch, storage)
    assert set(packed) == {"cls", "patches"}
    assert packed["cls"].equal(features.cls.to(dtype)) and packed["patches"].equal(features.patches.to(dtype))
