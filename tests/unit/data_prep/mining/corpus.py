"""Small corpora, and a small dictionary that knows their nouns."""

import random

from data_prep.bank.mining import Rules
from data_prep.bank.mining.counts import Counts
from data_prep.bank.mining.filter import filter_words
from data_prep.bank.mining.propose import merges_of
from data_prep.bank.mining.visual_senses import Lexicon, VisualSenses
from data_prep.bank.mining.words import Words, word_table
from tests.support.wordnet import Dictionary, Meaning

NOUNS = [
    Meaning(["entity"], "noun.Tops"),
    Meaning(["person:6833"], "noun.Tops", ["entity"]),
    Meaning(["people:257"], "noun.group", ["entity"], members=["person"]),
    Meaning(["social group"], "noun.group", ["entity"]),
    Meaning(["gathering"], "noun.group", ["social group"]),
    Meaning(["crowd:35"], "noun.group", ["gathering"]),
    Meaning(["man:749"], "noun.person", ["person"]),
    Meaning(["woman:143"], "noun.person", ["person"]),
    Meaning(["child:50", "kid:5"], "noun.person", ["person"]),
    Meaning(["runner"], "noun.person", ["person"]),
    Meaning(["runner"], "noun.artifact", ["entity"]),
    Meaning(["hood"], "noun.person", ["person"]),
    Meaning(["hood"], "noun.artifact", ["entity"]),
    Meaning(["shepherd:1"], "noun.person", ["person"]),
    Meaning(["animal"], "noun.Tops", ["entity"]),
    Meaning(["dog:42"], "noun.animal", ["animal"]),
    Meaning(["poodle"], "noun.animal", ["dog"]),
    Meaning(["toy poodle"], "noun.animal", ["poodle"]),
    Meaning(["cat:18"], "noun.animal", ["animal"]),
    Meaning(["food"], "noun.Tops", ["entity"]),
    Meaning(["hot dog", "hotdog"], "noun.food", ["food"]),
    Meaning(["ball:20"], "noun.artifact", ["entity"]),
    Meaning(["tennis ball"], "noun.artifact", ["ball"]),
    Meaning(["couch:5", "sofa:5"], "noun.artifact", ["entity"]),
    Meaning(["motorcycle", "bike"], "noun.artifact", ["entity"]),
    Meaning(["bicycle:5", "bike"], "noun.artifact", ["entity"]),
    Meaning(["ringing:9", "ring:9"], "noun.event", ["entity"]),
    Meaning(["hoop:3", "ring"], "noun.artifact", ["entity"]),
    Meaning(["glass:9"], "noun.substance", ["entity"]),
    Meaning(["glasses:4"], "noun.artifact", ["entity"]),
    Meaning(["short"], "noun.event", ["entity"]),
    Meaning(["shorts"], "noun.artifact", ["entity"]),
    Meaning(["clothes"], "noun.artifact", ["entity"]),
    Meaning(["surfboard"], "noun.artifact", ["entity"]),
    Meaning(["pit bull"], "noun.animal", ["dog"]),
    Meaning(["bikini"], "noun.artifact", ["entity"]),
    Meaning(["vase"], "noun.artifact", ["entity"]),
    Meaning(["jean"], "noun.artifact", ["entity"]),
    Meaning(["jacket"], "noun.artifact", ["entity"]),
    Meaning(["wall"], "noun.artifact", ["entity"]),
    Meaning(["face:90"], "noun.body", ["entity"]),
    Meaning(["kayak"], "noun.artifact", ["entity"]),
    Meaning(["swing"], "noun.artifact", ["entity"]),
    Meaning(["top:20"], "noun.location", ["entity"]),
    Meaning(["tank top"], "noun.artifact", ["entity"]),
    Meaning(["fire:43"], "noun.event", ["entity"]),
    Meaning(["campfire"], "noun.event", ["fire"]),
    Meaning(["idea:60"], "noun.cognition", ["entity"]),
    Meaning(["water:90"], "noun.substance", ["entity"]),
    Meaning(["mouth:20"], "noun.body", ["entity"]),
    Meaning(["building:40"], "noun.artifact", ["entity"]),
    Meaning(["splashing"], "noun.act", ["entity"]),
    Meaning(["grass"], "noun.plant", ["entity"]),
]

DICTIONARY = Dictionary(
    NOUNS,
    ["swing", "play", "run", "drink", "splash", "climb", "build"],
    ["green"],
    {"children": "child", "people": "people", "clothes": "clothes"},
)
RULES = Rules()


def photo(*captions: str) -> list[list[tuple[str, str]]]:
    """A photo of captions, each a list of mentions: `dog, cats/cat`."""
    return [
        [
            tuple(mention.split("/")) if "/" in mention else (mention, mention)
            for mention in caption.split(", ")
            if mention
        ]
        for caption in captions
    ]  # type: ignore[misc]


def counted(photos, limit=1_000_000) -> Counts:
    counts = Counts(limit)
    for each in photos:
        counts.add(each)
    return counts


def sight_of(lexicon: Lexicon | None) -> VisualSenses | None:
    return VisualSenses(lexicon) if lexicon is not None else None


def words_of(photos, lexicon, rules=RULES) -> Words:
    return word_table(counted(photos), sight_of(lexicon), rules)


def merged(photos, lexicon, rules=RULES, stop=()) -> dict[str, tuple[str, str]]:
    """Word to (what it joined, why), by all steps up to the grouping."""
    words, visual = words_of(photos, lexicon, rules), sight_of(lexicon)
    merges = merges_of(photos, words, filter_words(words, frozenset(stop), visual, rules), visual, rules)
    return {merge.word: (merge.into, merge.reason) for merge in merges}


def random_photos(seed, names="abcdefgh", count=200):
    rng = random.Random(seed)
    return [
        photo(*(", ".join(rng.choices(names, k=rng.randint(0, 4))) for _ in range(rng.randint(1, 4))))
        for _ in range(count)
    ]
