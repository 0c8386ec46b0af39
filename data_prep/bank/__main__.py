"""`python -m data_prep.bank`."""

from data_prep.bank.program import main
from simzss.errors import run_program

if __name__ == "__main__":
    run_program(main)
