"""Settings of the concept bank."""

from simzss.settings.base import Settings
from simzss.settings.types import Strings


class ConceptSettings(Settings):
    """Concepts that captions are searched for, one file of `conf/concepts`."""

    bank: str
    """word list: below the configuration folder, or a path of yours"""
    exclude: Strings = []
    """leakage control: benchmarks whose class names leave the bank, such as [voc20]"""
    surface_forms: bool = True
    """match words as written before their lemma"""
