"""The segmenter that a configuration describes: one place for all verbs that segment."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simzss.data.benchmark import BenchmarkConfig
from simzss.errors import InputError
from simzss.models.backbone.base import with_proxy
from simzss.models.checkpoint import load_model
from simzss.models.sam.load import load_sam
from simzss.models.sam.sam import Sam
from simzss.models.simzss import SimZSS
from simzss.segmentation.inference.aggregate import Correlation
from simzss.segmentation.protocol import Protocol
from simzss.segmentation.refine.refinement import Refinement, asks_sam, build_refinement
from simzss.segmentation.segmenter import Segmenter


def check_settings(plain: Mapping[str, Any]) -> None:
    """Refuse values that no segmenter could have.

    Raises:
        InputError: names the key.
    """
    _protocol(plain)
    Correlation(**plain["correlate"])
    _refinement(plain)


def load_configured(plain: Mapping[str, Any]) -> tuple[SimZSS, dict[str, Any]]:
    """The model that `model`, `backbone` and `proxy` describe, and its settings.

    Raises:
        InputError: see `simzss.models.checkpoint.load_model`.
    """
    options = with_proxy(plain["backbone"], plain["proxy"])
    features = options["features"] or (None if options["proxy"] is None else "proxy")
    return load_model(plain["model"], options["weights"], features=features, proxy=options["proxy"])


def load_configured_sam(plain: Mapping[str, Any]) -> Sam | None:
    """The Segment Anything model that `sam` describes, if anything asks one."""
    asks = asks_sam(_refinement(plain)) or Correlation(**plain["correlate"]).needs_sam
    return load_sam(plain["sam"]["weights"]) if asks or plain["proxy"]["name"] == "sam" else None


def build_segmenter(
    plain: Mapping[str, Any], model: SimZSS, readout: str, sam: Sam | None, benchmark: BenchmarkConfig | None = None
) -> Segmenter:
    """The segmenter of a configuration.

    Args:
        plain: composition of a verb.
        model: loaded.
        readout: how class names become vectors.
        sam: loaded, if anything asks one.
        benchmark: has a short side for the protocol, and values for what is left open.

    Raises:
        InputError: settings that do not go together.
    """
    protocol = _protocol(plain).resolved(None if benchmark is None else benchmark.short_side)
    return Segmenter(
        model,
        protocol,
        readout,
        plain["precision"],
        refinement=_refinement(plain),
        batch_size=plain["batch_size"],
        correlation=Correlation(**plain["correlate"]),
        sam=sam,
        values=None if benchmark is None else benchmark.sam.get(protocol.name),
    )


def _refinement(plain: Mapping[str, Any]) -> Refinement | None:
    return build_refinement(plain.get("refine", {"kind": "none"}))  # `threshold` refines nothing


def _protocol(plain: Mapping[str, Any]) -> Protocol:
    protocol = Protocol(**plain["protocol"])
    if plain["inference"] is None:
        return protocol
    try:
        return replace(protocol, inference=plain["inference"])
    except InputError as error:
        raise InputError(str(error).removeprefix("protocol.")) from error
