"""One file a verb: settings to objects, run, files."""
