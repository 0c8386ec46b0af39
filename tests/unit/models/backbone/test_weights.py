"""Weights of backbones from files: all of them, none that hold code, and a hash that tells them apart."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.support.models import TINY_VIT, Harmful, make_backbone, refused, shaken

CNN = "test_resnet.r160_in1k"


def full_weights(name: str = TINY_VIT, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights as a published file has them, classifier included."""
    torch.manual_seed(seed)
    return shaken(timm.create_model(name), seed).state_dict()


@pytest.mark.parametrize("form", ["any.safetensors", "any.pth", "nested.pth", "tiny.safetensors", "tiny.pt"])
@pytest.mark.parametrize("name", [TINY_VIT, CNN])
def test_local_weights(name, form, tmp_path):
    """Files named after the backbone are found in a folder."""
    state = full_weights(name)
    if form.endswith("safetensors"):
        save_file(state, tmp_path / form)
    else:
        torch.save({"state_dict": state} if "nested" in form else state, tmp_path / form)
    given = str(tmp_path if "tiny" in form else tmp_path / form)
    backbone = make_backbone(timm_name=name, weights=given)
    assert backbone.weights_file == tmp_path / form
    loaded = backbone.model.state_dict()
    assert set(loaded) == {key for key in state if not key.startswith(("head.", "fc."))}
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key
    if name == TINY_VIT:
        projecting = make_backbone(weights=given, project=True).model.state_dict()
        assert set(projecting) == set(state)
        assert torch.equal(projecting["head.weight"], state["head.weight"])


def test_fingerprint_tells_weights_apart(tmp_path):
    state = full_weights()
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    changed = {key: value.clone() for key, value in state.items()}
    changed["blocks.3.mlp.fc1.bias"][5] += 1e-6
    save_file(changed, tmp_path / "c.safetensors")
    swapped = state | {"norm.weight": state["norm.bias"], "norm.bias": state["norm.weight"]}
    torch.save(swapped, tmp_path / "d.pth")
    a, b, c, d = (make_backbone(weights=str(tmp_path / name)).fingerprint
                  for name in ("a.safetensors", "b.pth", "c.safetensors", "d.pth"))  # fmt: skip
    assert a == b and len({a, c, d, make_backbone().fingerprint}) == 4
    assert make_backbone().weights_file is None


def test_pickled_code_is_not_run(tmp_path):
    trace = tmp_path / "was run"
    torch.save({"state_dict": full_weights(), "extra": Harmful(trace)}, tmp_path / "evil.pth")
    refused(lambda: make_backbone(weights=str(tmp_path / "evil.pth")), "evil.pth", TINY_VIT, "weights_only")
    assert not trace.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)  # the file does what it says
    assert trace.is_dir()


@pytest.mark.parametrize(
    "kind",
    ["no weights", "no tensors", "half a file", "other shapes", "lacks a block", "other model", "empty", "other names"],
)
def test_files_that_do_not_fit(kind, tmp_path):
    file, state, name = tmp_path / "weights.pth", full_weights(), TINY_VIT
    if kind == "lacks a block":
        state = {key: value for key, value in state.items() if not key.startswith("blocks.5.")}
    elif kind == "other names":
        state = {f"backbone.{key}": value for key, value in state.items()}
    elif kind in ("other shapes", "other model"):
        name = "vit_tiny_patch16_224" if kind == "other shapes" else CNN
    torch.save({"no tensors": [1, 2, 3], "empty": {}}.get(kind, state), file)
    if kind == "no weights":
        file.write_bytes(b"these are no weights")
    elif kind == "half a file":
        file.write_bytes(file.read_bytes()[:50_000])
    refused(lambda: make_backbone(timm_name=name, weights=str(file)), str(file), name)


def test_files_that_are_missing(tmp_path):
    file = tmp_path / "weights.pth"
    refused(lambda: make_backbone(weights=str(file)), f"backbone.weights={file}", "does not exist")
    (tmp_path / "other.pth").touch()
    refused(lambda: make_backbone(weights=str(tmp_path)), str(tmp_path), "holds no tiny", ".safetensors", ".pth")
