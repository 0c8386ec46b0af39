"""What executors open to the network: nothing, but for Ray on the loopback."""

import os
import subprocess
import sys

import pytest

from tests.support.program import ROOT

pytestmark = [pytest.mark.hostile, pytest.mark.slow]

PROGRAM = """
import psutil
from data_prep.captions.executors import Job, RayExecutor
from data_prep.captions.settings import RaySettings

executor = RayExecutor(RaySettings(processes=1))
assert [outcome.result for outcome in executor.run(abs, iter([Job(0, "a", -3)]))] == [3]
session = executor._ray._private.worker._global_node.get_session_dir_path()
for process in psutil.process_iter(["cmdline"]):
    own = process.pid == psutil.Process().pid or session in " ".join(process.info["cmdline"] or [])
    for place in process.net_connections("inet") if own else ():
        print(place.laddr.ip.removeprefix("::ffff:"), (place.raddr or place.laddr).ip.removeprefix("::ffff:"))
executor.close()
"""


def test_ray_of_its_own_stays_on_the_loopback():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    found = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert set(found.stdout.split()) == {"127.0.0.1"}
