"""Losses of captions and of masks as functions of features, and what they need: points and matching."""
