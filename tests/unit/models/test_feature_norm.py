"""Centring and whitening against NumPy in float64, on one process and on two."""

import numpy as np
import pytest
import torch

from simzss.errors import InputError
from simzss.models.feature_norm import MODES, FeatureNorm
from simzss.models.features import ImageFeatures
from tests.support.processes import on_two_processes

WIDTH, PATCHES = 6, 5
SIZES = (4, 3, 1, 5, 2)  # images of each batch; the first two are the first rank's


def features(count: int, seed: int, shift: float = 3.0) -> ImageFeatures:
    """Features as backbones give them: a strong common direction, uneven and correlated channels."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(WIDTH, WIDTH)) * np.geomspace(0.2, 5, WIDTH)
    common = shift * np.random.default_rng(98).normal(size=WIDTH)
    patches = random.normal(size=(count, PATCHES, WIDTH)) @ mixing + common
    cls = random.normal(size=(count, WIDTH)) @ mixing - 2 * common
    return ImageFeatures(torch.tensor(cls).float(), torch.tensor(patches).float(), (1, PATCHES))


def batches(shift: float = 3.0) -> list[ImageFeatures]:
    return [features(size, seed, shift) for seed, size in enumerate(SIZES)]


def joined(parts: list[ImageFeatures]) -> tuple[np.ndarray, np.ndarray]:
    """All class tokens (B, D) and all patches (B * N, D) in float64."""
    cls = torch.cat([part.cls for part in parts]).double().numpy()
    patches = torch.cat([part.patches for part in parts]).double().numpy()
    return cls, patches.reshape(-1, WIDTH)


def fitted(mode: str, parts: list[ImageFeatures], shrinkage: float = 0.1) -> FeatureNorm:
    norm = FeatureNorm(mode, WIDTH, shrinkage)
    norm.fit(iter(parts))
    return norm


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def check(found: ImageFeatures, cls: np.ndarray, patches: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found.cls.numpy(), cls, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.patches.numpy().reshape(-1, WIDTH), patches, rtol=0, atol=tolerance)


def test_none_leaves_the_direction():
    seen = features(7, 50)

    def never():
        raise AssertionError("read for nothing")
        yield

    norm = FeatureNorm("none", WIDTH)
    norm.fit(never())
    found = norm(seen)
    cls, patches = joined([seen])
    check(found, unit(cls), unit(patches))
    assert found.grid == (1, PATCHES) and found.patches.shape == (7, PATCHES, WIDTH)


def test_center():
    cls, patches = joined(batches())
    norm = fitted("center", batches())
    np.testing.assert_allclose(norm.cls_mean.numpy(), cls.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(norm.patch_mean.numpy(), patches.mean(axis=0), rtol=1e-6, atol=1e-6)
    seen = features(7, 50)
    new_cls, new_patches = joined([seen])
    check(norm(seen), unit(new_cls - cls.mean(axis=0)), unit(new_patches - patches.mean(axis=0)))
    # The two means differ: one in place of the other would be seen.
    assert np.abs(cls.mean(axis=0) - patches.mean(axis=0)).max() > 1


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 2.0])
def test_whiten(shrinkage):
    cls, patches = joined(batches())
    covariance = np.cov(patches.T, bias=True)
    shrunk = covariance + shrinkage * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    norm = fitted("whiten", batches(), shrinkage)
    matrix = norm.matrix.double().numpy()
    # The inverse square root is the one symmetric positive matrix for which this holds.
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-5)
    assert np.linalg.eigvalsh(matrix).min() > 0
    np.testing.assert_allclose(matrix @ shrunk @ matrix, np.eye(WIDTH), rtol=0, atol=1e-3)
    values, vectors = np.linalg.eigh(shrunk)
    exact = vectors @ np.diag(values**-0.5) @ vectors.T
    seen = features(7, 50)
    new_cls, new_patches = joined([seen])
    check(
        norm(seen), unit((new_cls - cls.mean(axis=0)) @ exact), unit((new_patches - patches.mean(axis=0)) @ exact), 1e-4
    )


@pytest.mark.parametrize("mode", ["center", "whiten"])
def test_several_batches_equal_one(mode):
    parts = batches()
    one = ImageFeatures(torch.cat([p.cls for p in parts]), torch.cat([p.patches for p in parts]), (1, PATCHES))
    several, whole = fitted(mode, parts), fitted(mode, [one])
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(several.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_whitening_under_a_strong_common_direction():
    """The mean is fifty times the spread: products are summed in float32, and must still tell the spread."""
    parts = batches(shift=60.0)
    _, patches = joined(parts)
    covariance = np.cov(patches.T, bias=True)
    shrunk = covariance + 0.1 * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    matrix = fitted("whiten", parts).matrix.double().numpy()
    np.testing.assert_allclose(matrix @ shrunk @ matrix, np.eye(WIDTH), rtol=0, atol=0.02)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_features_come_out_as_float32_unit_vectors(mode):
    norm = fitted(mode, batches())
    seen = features(3, 50)
    half = ImageFeatures(seen.cls.bfloat16(), seen.patches.bfloat16(), seen.grid)
    found, exact = norm(half), norm(seen)
    assert found.cls.dtype == found.patches.dtype == torch.float32
    torch.testing.assert_close(found.patches.norm(dim=-1), torch.ones(3, PATCHES), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.patches, exact.patches, rtol=0, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):  # it would round the products
        assert torch.equal(norm(seen).patches, exact.patches)


def test_statistics_are_saved():
    norm = fitted("whiten", batches())
    again = FeatureNorm("whiten", WIDTH)
    again.load_state_dict(norm.state_dict())
    seen = features(3, 50)
    assert torch.equal(again(seen).patches, norm(seen).patches)
    assert not list(norm.parameters())


def test_unknown_mode():
    with pytest.raises(InputError, match=r"feature_norm=whitened is unknown; did you mean whiten\b"):
        FeatureNorm("whitened", WIDTH)


def test_two_processes_equal_one(tmp_path):
    def work(rank: int) -> dict[str, dict[str, torch.Tensor]]:
        mine = batches()[:2] if rank == 0 else batches()[2:]
        return {mode: dict(fitted(mode, mine).state_dict()) for mode in MODES}

    for found in on_two_processes(work, tmp_path):
        for mode in ("center", "whiten"):
            for name, value in fitted(mode, batches()).state_dict().items():
                torch.testing.assert_close(found[mode][name], value, rtol=1e-4, atol=1e-5)
