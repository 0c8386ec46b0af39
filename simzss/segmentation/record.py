"""The protocol as it is recorded with every result, in the names of version 0.1: results of all versions compare."""

from typing import TYPE_CHECKING, Any

from simzss.segmentation.classifier import Classifier
from simzss.settings.renamed import in_old_names

if TYPE_CHECKING:
    from simzss.segmentation.segmenter import Segmenter


def describe(segmenter: "Segmenter", classifier: Classifier) -> dict[str, Any]:
    """Return the protocol of a segmenter with a classifier, as plain values."""
    model, background = segmenter.model, classifier.background
    backbone = model.backbone
    record: dict[str, Any] = segmenter.protocol.plain() | {
        "text_pooling": segmenter.text_pooling,
        "precision": segmenter.precision,
        "features": backbone.features,
    }
    if model.mask_head is not None:
        record |= {"short_side": segmenter.prepare.resize.size, "mask_head": model.mask_head.settings.plain()}
    if backbone.proxy is not None:
        own = backbone.proxy_backbone
        proxy = {key: getattr(backbone.proxy, key) for key in ("name", "beta", "gamma")}
        record["proxy"] = proxy | {"weights": None if own is None else own.fingerprint}
    aggregation = segmenter.aggregation
    record["aggregate"] = aggregation.plain() if aggregation.kind != "none" else "none"
    record["refine"] = "none" if segmenter.refiner is None else _whole(segmenter.refiner.describe(background))
    if segmenter.sam is not None:
        record["sam"] = {"name": segmenter.sam.name, "weights": segmenter.sam.fingerprint}
    threshold = background.threshold if background.has_threshold else 0.0
    record["background"] = {"kind": background.kind, "threshold": threshold, "words": list(background.words)}
    return in_old_names(record)


def _whole(settings: dict[str, Any]) -> dict[str, Any]:
    """Write an area of whole pixels as an integer."""
    area = settings.get("min_area")
    return settings | {"min_area": int(area)} if isinstance(area, float) and area.is_integer() else settings
