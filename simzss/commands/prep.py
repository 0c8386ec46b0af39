"""`simzss prep PROGRAM`: programs that are run once, before training. They live in `data_prep`."""

import importlib

from simzss.errors import ConfigError, nearest

PROGRAMS = {
    "captions": "image-caption pairs to annotated shards",
    "bank": "coverage of a concept bank, or a proposal for one",
    "scenes": "rendered scenes with captions and masks",
    "clip": "CLIP's own towers as a model folder",
    "coco_object": "masks of COCO-Object",
    "coco_stuff": "masks of COCO-Stuff",
    "context": "masks of PASCAL Context",
    "cityscapes": "masks of Cityscapes",
    "efficientnet_weights": "weights of the demo's backbone",
}


def run(arguments: list[str]) -> None:
    """Run the program that the first argument names with the others.

    Raises:
        ConfigError: no such program.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: simzss prep PROGRAM [key=value …]\n")
        print("\n".join(f"  {name:<22}{about}" for name, about in PROGRAMS.items()))
        return
    name, *rest = arguments
    if name not in PROGRAMS:
        raise ConfigError(f"unknown program {name!r}; {nearest(name, PROGRAMS)}")
    module = importlib.import_module(f"simzss.data_prep.{name}")
    program = importlib.import_module(f"{module.__name__}.program") if hasattr(module, "__path__") else module
    program.main(rest)
