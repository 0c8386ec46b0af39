"""`python -m simzss` is the `simzss` command."""

from simzss.cli import main

main()
