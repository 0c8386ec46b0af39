"""Typed settings: Hydra composes `conf/`, pydantic checks the result once, objects travel from there."""
