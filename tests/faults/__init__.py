"""A campaign of faults: programs are killed, starved and fed damaged files; nothing may be lost, silent or a traceback.

`make faults` runs all of it and writes the table of docs/faults.md; `make test` runs a share of each kind. Programs
run in forked children of a process that has imported everything, so that a fault takes a second.
"""
