"""Pages, tables and drawings of what was measured."""
