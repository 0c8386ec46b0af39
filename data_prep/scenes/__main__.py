"""`python -m data_prep.scenes key=value`, the same as `simzss prep scenes key=value`."""

import sys

from simzss import cli

if __name__ == "__main__":
    cli.main(["prep", "scenes", *sys.argv[1:]])
