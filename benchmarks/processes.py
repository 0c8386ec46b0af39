"""A cached run by one or two processes: `python -m benchmarks.processes OUTPUT STEPS CONFIG`.

A program, since Lightning starts the second process by the same command. The first process writes the seconds of a step
to OUTPUT.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.runs import step_times
from simzss.commands.verbs import settings_of


def main(output: str, steps: str, config: str) -> None:
    """Train and write."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as logs:
        watch = step_times(settings_of("train", [], config), Path(logs), int(steps))
    if os.environ.get("LOCAL_RANK", "0") == "0":
        Path(output).write_text(json.dumps(watch.seconds_per_step), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
