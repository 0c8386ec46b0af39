"""Frozen vision backbones: one interface, timm's models behind it, dense features of CLIP-like ones."""
