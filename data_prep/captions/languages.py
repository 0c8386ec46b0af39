"""The language of a caption. The only py3langid import."""

from functools import cache
from typing import Any

from simzss.extras import need


@cache
def language_identifier() -> Any:
    """Return py3langid's identifier, read once per process: `classify(text)` gives a code and its probability.

    Raises:
        ConfigError: the package is not installed.
    """
    langid = need("py3langid.langid", "prep")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
