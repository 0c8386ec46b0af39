"""`python -m data_prep.captions key=value`."""

from data_prep.captions.program import main
from simzss.errors import run_program

if __name__ == "__main__":
    run_program(main)
