"""Renders scenes with captions and masks."""
