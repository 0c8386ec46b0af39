"""Training and evaluation on two machines, rehearsed on one: what docs/cluster.md says of them."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simzss.cli import dispatch
from simzss.errors import InputError
from simzss.evaluation.counts import load_counts
from simzss.models.checkpoint import save_model
from simzss.models.simzss import SimZSS
from simzss.settings.compose import CONF_DIR, compose
from simzss.training.module import SimZSSModule
from tests.support import official_layouts
from tests.support.models import make_backbone, make_scratch, save_backbone, shaken
from tests.support.threads import one_thread  # noqa: F401
from tests.support.training import coloured_shards, logged, tiny_arguments, train
from tests.support.two_nodes import Node, finish, slurm, start, start_torchrun, torchrun, wait_for

pytestmark = pytest.mark.slow

# One batch holds all images: with fewer, which images share a batch depends on the number of processes. The tower is
# narrow since each of its 49,408 words is a row of that width, which every step and every checkpoint goes through.
CACHED = (
    "data=cached",
    "backbone.feature_norm=center",
    "data.batch_size=32",
    "text.width=16",
    "trainer.epochs=8",
)
NODES = ("trainer.num_nodes=2", "trainer.timeout=30")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Write two shards, of which the second names no concept: only one node meets them."""
    return coloured_shards(tmp_path_factory.mktemp("data") / "shards", without_concepts=range(16, 32))


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory):
    """Train with one process."""
    output = tmp_path_factory.mktemp("alone") / "run"
    train(shards, output, *CACHED)
    return output


def arguments(shards: Path, output: Path, *extra: str) -> list[str]:
    return ["train", *tiny_arguments(shards, output, *CACHED, *NODES, *extra)]


def error_of(node: Node) -> str:
    """Return the one line that a failed node ends with."""
    assert "Traceback" not in node.log
    (line,) = [line for line in node.log.splitlines() if line.startswith("error: ")]
    return line


def assert_equal_runs(found: Path, expected: Path) -> None:
    one, two = logged(expected), logged(found)
    assert two.keys() == one.keys() and len(one) == 8
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-3), step
    weights = load_file(expected / "model" / "model.safetensors")
    for name, value in load_file(found / "model" / "model.safetensors").items():
        torch.testing.assert_close(value, weights.pop(name), rtol=1e-2, atol=1e-3)
    assert not weights


def test_torchrun_on_two_nodes_trains_as_one_process(shards, alone, tmp_path):
    """The command of the page, once a node, from a working directory of its own."""
    nodes = start_torchrun(tmp_path, arguments(shards, tmp_path / "run", "logger=[csv,tensorboard]"))
    assert finish(nodes, 100) == [0, 0], [node.log for node in nodes]
    assert_equal_runs(tmp_path / "run", alone)
    assert [[path.name for path in node.folder.iterdir()] for node in nodes] == [["log"], ["log"]]
    assert len(list((tmp_path / "run" / "tensorboard").glob("events*"))) == 1
    assert ["features of 32 images, " in node.log for node in nodes] == [True, False]


def test_slurm_on_two_nodes_goes_on_from_one_node(shards, alone, tmp_path, monkeypatch):
    """By Lightning's Slurm environment; the run before broke off between two checkpoints."""
    output = tmp_path / "run"
    begin = SimZSSModule.on_train_epoch_start

    def crash(module):
        if module.current_epoch == 4:
            raise RuntimeError("power cut")
        begin(module)

    with monkeypatch.context() as patch:
        patch.setattr(SimZSSModule, "on_train_epoch_start", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(shards, output, *CACHED)
    last = output / "checkpoints" / "last.ckpt"
    last.unlink()
    last.symlink_to("epoch2.ckpt")  # removed already, as the new one is whole
    nodes = start(tmp_path, [arguments(shards, output, "resume=last")] * 2, slurm)
    assert finish(nodes) == [0, 0], [node.log for node in nodes]
    assert_equal_runs(output, alone)
    assert [[path.name for path in node.folder.iterdir()] for node in nodes] == [["log"], ["log"]]
    assert {path.name for path in output.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_node_that_ends_ends_the_other(shards, alone, tmp_path, ending):
    """A machine that is gone, and one that was asked to stop; one process goes on from what they left."""
    output = tmp_path / "run"
    slowly = "trainer.micro_batch=1"  # not at its end before the signal is sent
    nodes = start(tmp_path, [arguments(shards, output, slowly)] * 2)
    wait_for(output / "checkpoints" / "last.ckpt", nodes[0])
    os.kill(nodes[1].process.pid, ending)
    assert finish(nodes, 20) == [2, -ending]
    assert "process 0 on" in error_of(nodes[0]) and "lost another process" in error_of(nodes[0])
    assert 0 < len(logged(output)) < 8 and not (output / "model").exists()
    if ending == signal.SIGKILL:
        train(shards, output, *CACHED, "resume=last")
        assert_equal_runs(output, alone)


@pytest.mark.parametrize(
    ("launcher", "second", "says"),
    [
        (torchrun, "data.shards=/nowhere/*.tar", "data.shards=/nowhere/*.tar matches no file"),
        (slurm, "data.shards={shards}/shard-0.tar", "sees other shards (1) than process 0 on"),
        (torchrun, "data=shards data.shards={shards}/shard-0.tar", "sees 1 shards of 16 samples, process 0 on"),
        (torchrun, "backbone.weights=/nowhere.safetensors", "/nowhere.safetensors"),
    ],
)
def test_what_one_node_lacks_is_said_by_both(shards, tmp_path, launcher, second, says):
    common = arguments(shards, tmp_path / "run")
    *kind, lacking = second.format(shards=shards).split()
    if kind:
        common[common.index("data=cached")] = kind[0]
    nodes = start(tmp_path, [common, [*common, lacking]], launcher)
    assert finish(nodes, 30) == [2, 2], [node.log for node in nodes]
    first, other = map(error_of, nodes)
    assert says in first and says in other and "process 1 on " in first
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_more_processes_than_configured_are_refused(shards, tmp_path):
    """Each would be a run of its own, into the same folder."""
    nodes = start(tmp_path, [["train", *tiny_arguments(shards, tmp_path / "run", *CACHED)]] * 2)
    assert finish(nodes, 30) == [2, 2]
    assert all("num_nodes=1" in error_of(node) and "world size (2)" in error_of(node) for node in nodes)
    assert not (tmp_path / "run").exists()


def test_a_node_that_never_comes_is_not_waited_for_without_end(shards, tmp_path):
    started = {launcher: tmp_path / launcher.__name__ for launcher in (torchrun, slurm)}
    nodes = [
        start(folder, [arguments(shards, folder / "run", "trainer.timeout=1")], launcher, world=2)[0]
        for launcher, folder in started.items()  # both wait at the same time
    ]
    assert finish(nodes, 30) == [2, 2]
    assert all("2 processes did not meet at 127.0.0.1:" in error_of(node) for node in nodes)


def test_a_slurm_job_without_srun_is_refused(shards, tmp_path, monkeypatch):
    for key, value in slurm(0, 2, 1).items():
        if key != "SLURM_STEP_ID":  # which a job's script has not
            monkeypatch.setenv(key, value)
    with pytest.raises(InputError, match=r"2 tasks.*srun simzss train"):
        train(shards, tmp_path / "run", *CACHED, *NODES)


def test_few_images_are_shared_by_both_nodes(tmp_path):
    """Fewer than go through the backbone at a time, all in one block of one process. Some are missing: said once."""
    shards = coloured_shards(tmp_path / "shards", count=8)
    listed = [{"name": f"shard-{number}.tar", "samples": 4} for number in range(2)]
    record = {"complete": False, "failed": {"in.tar": "No space left on device"}, "shards": listed}
    (shards / "index.json").write_text(json.dumps(record), encoding="utf-8")
    extra = ("data.batch_size=8", "trainer.epochs=3")
    train(shards, tmp_path / "one", *CACHED, *extra)
    nodes = start(tmp_path, [arguments(shards, tmp_path / "two", *extra)] * 2)
    assert finish(nodes) == [0, 0], [node.log for node in nodes]
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert two == pytest.approx(one, rel=1e-3) and len(one) == 3
    assert [node.log.count(f"incomplete shards: {shards} (failed tasks: 1)") for node in nodes] == [1, 0]


@pytest.mark.parametrize("launcher", [torchrun, slurm])
def test_evaluation_on_two_nodes(tmp_path, launcher):
    data = tmp_path / "data"
    official_layouts.voc2012(data)
    backbone = make_backbone(weights=str(save_backbone(tmp_path / "vit.safetensors")))
    save_model(SimZSS(backbone, shaken(make_scratch())).eval(), tmp_path / "model")
    common = ["eval", f"model={tmp_path}/model", "benchmark=voc20", f"benchmark.root={data}/VOCdevkit", "overlays=0",
              "protocol.short_side=64", "protocol.crop_size=64", "protocol.stride=32", "protocol.templates=name",
              "precision=32-true", "num_workers=0", "save_masks=true"]  # fmt: skip
    dispatch([*common, f"output_dir={tmp_path}/one"])
    nodes = start(tmp_path, [[*common, f"output_dir={tmp_path}/two"]] * 2, launcher)
    assert finish(nodes) == [0, 0], [node.log for node in nodes]
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two == one and one["voc20"]["images"] == 12
    for part in ("confusion", "per_image"):
        assert torch.equal(*(getattr(load_counts(tmp_path / name / "counts" / "voc20.safetensors"), part)
                             for name in ("one", "two")))  # fmt: skip
    for mask in (tmp_path / "one" / "masks").iterdir():
        assert (tmp_path / "two" / "masks" / mask.name).read_bytes() == mask.read_bytes()
    assert (nodes[0].log.count("voc20: mIoU"), nodes[1].log.count("voc20:")) == (1, 0)
    lacking = [*common, f"output_dir={tmp_path}/lacking"]
    nodes = start(tmp_path / "lacking", [lacking, [*lacking, "benchmark.root=/nowhere"]], launcher)
    assert finish(nodes, 30) == [2, 2]
    assert "process 1 on" in error_of(nodes[0]) and all("/nowhere" in error_of(node) for node in nodes)


SCRIPTS = [CONF_DIR / "cluster" / "train.sbatch", CONF_DIR / "cluster" / "captions.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_job_script_is_bash(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0


def test_job_script_of_training(shards, tmp_path):
    """Its body with a srun that starts one task here: what it passes on, always with what goes on in every state."""
    tools = tmp_path / "tools" / "bin"
    tools.mkdir(parents=True)
    (tools / "activate").write_text(f"PATH={tools}:$PATH\n")
    (tools / "srun").write_text('#!/bin/bash\nshift\nexec "$@"\n')
    (tools / "simzss").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/said\nexit 3\n')
    for tool in ("srun", "simzss"):
        (tools / tool).chmod(0o755)
    output = tmp_path / "a run"
    environment = os.environ | {"VENV": str(tools.parent), "OUTPUT": str(output), "SLURM_JOB_NUM_NODES": "2"}
    environment |= {"SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_ID": "1"}

    command = ["bash", str(SCRIPTS[0]), "experiment=demo", f"data.shards={shards}/*.tar"]
    assert subprocess.run(command, env=environment).returncode == 3
    said = (tmp_path / "said").read_text().splitlines()
    assert said == ["train", "resume=last", "experiment=demo", f"data.shards={shards}/*.tar", f"output_dir={output}",
                    "trainer.num_nodes=2", "trainer.devices=8"]  # fmt: skip
    compose("train", said[1:])
