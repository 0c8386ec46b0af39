"""`python -m data_prep.captions key=value`, the same as `simzss prep captions key=value`."""

import sys

from simzss import cli

if __name__ == "__main__":
    cli.main(["prep", "captions", *sys.argv[1:]])
