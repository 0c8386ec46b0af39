"""Give any frozen vision backbone an open vocabulary from image-caption pairs."""

__version__ = "0.1.0"
