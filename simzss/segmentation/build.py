"""The segmenter that settings describe: one place for all verbs that segment."""

from simzss.data.settings import BenchmarkSettings, ProtocolValues
from simzss.models.checkpoint import load_model
from simzss.models.sam.load import load_sam
from simzss.models.sam.sam import Sam
from simzss.models.simzss import SimZSS
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import SegmentationSettings, features_with


def load_configured(settings: SegmentationSettings) -> SimZSS:
    """Load the model that `model`, `backbone` and `proxy` describe.

    Raises:
        ModelError: see `simzss.models.checkpoint.load_model`.
    """
    features = features_with(settings.proxy, settings.backbone.features)
    return load_model(settings.model, settings.backbone.weights, features, settings.proxy)


def load_configured_sam(settings: SegmentationSettings) -> Sam | None:
    """Load the Segment Anything model that `sam` describes, if anything needs one."""
    return load_sam(settings.sam.weights) if settings.needs_sam else None


def build_segmenter(
    settings: SegmentationSettings, model: SimZSS, sam: Sam | None = None, benchmark: BenchmarkSettings | None = None
) -> Segmenter:
    """Build the segmenter of a verb.

    Args:
        settings: of the verb.
        model: loaded.
        sam: loaded, if anything needs one.
        benchmark: has values for what the protocol leaves open.

    Raises:
        ConfigError: settings that do not go together.
    """
    protocol = settings.protocol
    if settings.inference is not None:
        protocol = protocol.replace(inference=settings.inference)
    return Segmenter(
        model,
        protocol,
        text_pooling=settings.text_pooling,
        precision=settings.precision,
        refine=settings.refine,
        aggregate=settings.aggregate,
        sam=sam,
        batch_size=settings.batch_size,
        values=ProtocolValues() if benchmark is None else benchmark.values_of(protocol.name),
    )
