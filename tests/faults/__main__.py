"""Run the campaign: `python -m tests.faults [share=0.1] [only=TEXT] [seed=0] [output=outputs/faults.md]`."""

import sys

from simzss.program import run_program
from tests.faults.campaign import main

if __name__ == "__main__":
    run_program(lambda: main(sys.argv[1:]))
