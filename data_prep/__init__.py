"""Programs that are run once, before training: `python -m data_prep.<program> key=value`."""
