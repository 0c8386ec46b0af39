"""`python -m data_prep.bank key=value`, the same as `simzss prep bank key=value`."""

import sys

from simzss import cli

if __name__ == "__main__":
    cli.main(["prep", "bank", *sys.argv[1:]])
