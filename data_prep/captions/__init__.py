"""Annotate captions with their noun concepts and pack them with their images into shards."""
