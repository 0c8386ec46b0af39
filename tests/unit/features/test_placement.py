from pathlib import Path

import psutil
import pytest
import torch

from simzss.features import placement
from simzss.features.placement import Memory, choose, free_host_memory, free_memory, local_processes, size_text
from tests.support.models import refused

GB = 10**9


@pytest.mark.parametrize(
    ("wanted", "nbytes", "memory", "expected"),
    [
        ("auto", 6 * GB, Memory(100 * GB, 10 * GB, True), "device"),
        ("auto", 6 * GB + 1, Memory(100 * GB, 10 * GB, True), "host"),
        ("auto", 70 * GB, Memory(100 * GB, 10 * GB, True), "host"),
        ("auto", 70 * GB + 1, Memory(100 * GB, 10 * GB, True), "mapped"),
        ("auto", 70 * GB, Memory(100 * GB), "host"),
        ("auto", 70 * GB + 1, Memory(100 * GB), "mapped"),
        ("auto", 1, Memory(0), "mapped"),
        ("auto", 1, Memory(10, None, True), "host"),  # it does not say what is free
        ("device", 10 * GB, Memory(0, 10 * GB, True), "device"),
        ("device", 10 * GB, Memory(0, None, True), "device"),
        ("device", 10 * GB, Memory(10 * GB), "host"),
        ("host", 10 * GB, Memory(10 * GB, 100 * GB, True), "host"),
        ("mapped", 10 * GB, Memory(0, 0, True), "mapped"),
    ],
)
def test_rule(wanted, nbytes, memory, expected):
    assert choose(wanted, nbytes, memory) == expected


@pytest.mark.parametrize(
    ("wanted", "memory", "says"),
    [
        ("device", Memory(100 * GB, 10 * GB, True), ["placement=device", "11.0 GB", "10.0 GB"]),
        ("device", Memory(10 * GB), ["placement=host", "11.0 GB", "10.0 GB"]),
        ("host", Memory(10 * GB, 100 * GB, True), ["placement=host", "11.0 GB", "10.0 GB"]),
    ],
)
def test_what_does_not_fit_is_refused(wanted, memory, says):
    refused(lambda: choose(wanted, 11 * GB, memory), *says)


def test_free_memory_is_divided_by_the_processes():
    whole, part = free_memory(torch.device("cpu"), 1), free_memory(torch.device("cpu"), 4)
    assert whole.device is None and not whole.accelerator
    assert 0 < whole.host <= psutil.virtual_memory().total
    assert part.host == pytest.approx(whole.host / 4, rel=0.2)


def test_accelerator_counts_what_torch_holds_unused(monkeypatch):
    class Module:
        mem_get_info = staticmethod(lambda device: (70, 80))
        memory_reserved = staticmethod(lambda device: 8)
        memory_allocated = staticmethod(lambda device: 5)

    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    found = free_memory(torch.device("cuda"), 2)
    assert (found.device, found.accelerator) == (73, True)
    monkeypatch.setattr(torch, "get_device_module", lambda device: object)
    found = free_memory(torch.device("mps"), 2)
    assert (found.device, found.accelerator) == (None, True)


def write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def test_control_groups_of_both_versions(tmp_path):
    membership = tmp_path / "cgroup"
    root = tmp_path / "fs"
    membership.write_text("4:cpu,cpuacct:/x\n3:memory:/job/step\n0::/slurm/job\n")
    statistics = "anon 5\ninactive_file 30\n"
    write(root / "slurm/job", {"memory.max": "max\n", "memory.current": "50\n", "memory.stat": statistics})
    write(root / "slurm", {"memory.max": "100\n", "memory.current": "50\n", "memory.stat": statistics})
    old = {"memory.usage_in_bytes": "95", "memory.stat": "inactive_file 1\ntotal_inactive_file 10\n"}
    write(root / "memory/job/step", {"memory.limit_in_bytes": "90", **old})
    write(root / "memory/job", {"memory.limit_in_bytes": "70", **old})
    assert sorted(placement._group_limits(membership, root)) == [0, 5, 80]


def test_control_group_of_a_container_is_the_root(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("0::/docker/abc\n")
    write(tmp_path / "fs", {"memory.max": "100", "memory.current": "50", "memory.stat": "inactive_file 0\n"})
    assert list(placement._group_limits(membership, tmp_path / "fs")) == [50]
    assert list(placement._group_limits(tmp_path / "gone", tmp_path / "fs")) == []


def test_the_group_limits_the_host(monkeypatch):
    monkeypatch.setattr(placement, "_group_limits", lambda *paths: iter([12345, 99**9]))
    assert free_host_memory() == 12345


def test_local_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert local_processes(8) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert local_processes(8) == 4


def test_size_text():
    assert (size_text(46.5e9), size_text(3e6)) == ("46.5 GB", "3.0 MB")
