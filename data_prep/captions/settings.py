"""The settings of the program besides the source and the filters, which have places of their own."""

import math
from dataclasses import dataclass

from simzss.errors import InputError


@dataclass(frozen=True)
class ExecutorSettings:
    """`conf/executor`."""

    kind: str
    processes: int | None = None
    address: str | None = None
    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True)
class CaptionsSettings:
    """What `conf/captions.yaml` holds besides its groups and the source."""

    output: str
    spacy: str
    parse_batch: int
    parse_on_accelerator: bool
    samples_per_shard: int
    shard_megabytes: float
    changed: str

    def __post_init__(self) -> None:
        for name in ("parse_batch", "samples_per_shard", "shard_megabytes"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)} must be above 0")
        if self.changed not in ("refuse", "redo"):
            raise InputError(f"changed={self.changed} must be refuse or redo")
