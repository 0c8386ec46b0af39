"""Run benchmarks: `python -m benchmarks [NAME …]`; writes outputs/bench.json."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import captions, evaluation, mask_head, memory, training
from benchmarks.rows import Row, machine, write
from simzss.errors import InputError, nearest
from simzss.program import run_program

BENCHES: dict[str, Callable[[], list[Row]]] = {
    "evaluation": evaluation.run,
    "memory": memory.run,
    "captions": captions.run,
    "training": training.run,
    "mask_head": mask_head.run,
}
OUTPUT = Path("outputs/bench.json")


def main() -> None:
    """Run the named benchmarks, or all."""
    logging.basicConfig(level=logging.WARNING)
    names = sys.argv[1:] or list(BENCHES)
    for name in names:
        if name not in BENCHES:
            raise InputError(f"no benchmark {name!r}; {nearest(name, BENCHES)}")
    print(machine())
    for name in names:
        rows = BENCHES[name]()
        write(OUTPUT, rows)
        for row in rows:
            print(f"{row.name}: ours {row.ours:.4g}, baseline {row.baseline:.4g} {row.unit}: {row.ratio:.2f}x")
    print(OUTPUT)


if __name__ == "__main__":
    run_program(main)
