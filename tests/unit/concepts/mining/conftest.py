import pytest

from simzss.concepts.wordnet import WordNet
from tests.unit.concepts.mining.corpus import DICTIONARY


@pytest.fixture(scope="session")
def wordnet(tmp_path_factory) -> WordNet:
    return WordNet(DICTIONARY.write(tmp_path_factory.mktemp("wordnet")))
