"""From the settings of `conf/refine` to a refiner."""

from simzss.data.settings import ProtocolValues
from simzss.models.sam.sam import Sam
from simzss.segmentation.refine.base import Refiner
from simzss.segmentation.refine.pamr import PamrRefiner
from simzss.segmentation.refine.sam import SamRefiner
from simzss.segmentation.refine.vote import VoteRefiner
from simzss.segmentation.settings import NoRefinement, PamrSettings, RefineSettings, SamRefinementSettings


def build_refiner(
    settings: RefineSettings, sam: Sam | None = None, values: ProtocolValues = ProtocolValues()
) -> Refiner | None:
    """Build a refiner; None for `kind=none`.

    Args:
        settings: see `conf/refine`.
        sam: Segment Anything model, for kinds that need one.
        values: of a benchmark, for a threshold that is open.
    """
    if isinstance(settings, NoRefinement):
        return None
    if isinstance(settings, PamrSettings):
        return PamrRefiner(settings)
    assert sam is not None
    return (
        SamRefiner(settings, sam, values) if isinstance(settings, SamRefinementSettings) else VoteRefiner(settings, sam)
    )
