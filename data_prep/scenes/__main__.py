"""`python -m data_prep.scenes`."""

from data_prep.scenes.program import main
from simzss.errors import run_program

if __name__ == "__main__":
    run_program(main)
