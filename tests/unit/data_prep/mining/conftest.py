import pytest

from data_prep.bank.wordnet import WordNet
from tests.unit.data_prep.mining.corpus import DICTIONARY


@pytest.fixture(scope="session")
def wordnet(tmp_path_factory) -> WordNet:
    return WordNet(DICTIONARY.write(tmp_path_factory.mktemp("wordnet")))
