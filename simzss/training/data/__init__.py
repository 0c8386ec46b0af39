"""Batches for training: captions with images or their kept features, photos with masks."""
