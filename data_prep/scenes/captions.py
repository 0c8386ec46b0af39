"""Write captions of the synthetic scenes: varied, and true to the picture."""

import itertools

import numpy as np

from .compose import Scene, Thing
from .grounds import CLASSES

_Rng = np.random.Generator

_NUMBERS = {2: "two", 3: "three", 4: "four"}
_BELOW = {
    "grass": ("on the grass", "on green grass", "in the grass", "in the green grass"),
    "sand": ("on the sand", "on yellow sand", "in the sand", "on dry sand"),
    "water": ("in the water", "on the water", "in blue water", "on the blue water"),
    "snow": ("in the snow", "on the snow", "on white snow", "in deep snow"),
    "floor": ("on the floor", "on a wooden floor", "on the wooden floor", "on a brown floor"),
    "wall": ("against a wall", "by a wall", "near the wall", "against the old wall"),
}
_FRONT = 0.2  # share of "in front of" where it holds: parsers take its "front" for a thing of its own


def _pick(rng: _Rng, options: tuple[str, ...] | list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _place(scene: Scene, rng: _Rng) -> str:
    """Return a phrase for the grounds; empty at times, one of two at times."""
    if rng.random() < 0.25:
        return ""
    seen = np.bincount(scene.mask.ravel(), minlength=len(CLASSES)) / scene.mask.size
    names = [name for name in scene.grounds if seen[CLASSES.index(name)] > 0.04]
    if len(names) == 2 and rng.random() < 0.5:
        names = [_pick(rng, names)]
    sky = ("a cloudy sky", "the cloudy sky", "a gray sky") if scene.cloudy else ("a blue sky", "the clear sky")
    phrases = []
    for name in reversed(names):
        if name == "sky":
            open_sky = ["in the sky", "in " + _pick(rng, sky), "against " + _pick(rng, sky)]
            phrases.append(
                "under " + _pick(rng, (*sky, "the sky")) if len(scene.grounds) == 2 else _pick(rng, open_sky)
            )
        else:
            phrases.append(_pick(rng, _BELOW[name]))
    return " ".join(phrases)


def _name(members: list[Thing], rng: _Rng) -> str:
    """Return a name such as "a red wooden chair" or "two balls", with attributes that all members share at times."""
    words = []
    if len({m.colour for m in members}) == 1 and rng.random() < 0.65:
        words.append(members[0].colour)
    if members[0].material != "plain" and len({m.material for m in members}) == 1 and rng.random() < 0.55:
        words.append(members[0].material)
    if len(words) == 2 and rng.random() < 0.25:
        words.reverse()
    kind = members[0].kind
    if len(members) > 1:
        plural = {"fish": "fish", "butterfly": "butterflies"}.get(kind, kind + "s")
        return " ".join([_NUMBERS[len(members)], *words, plural])
    text = " ".join([*words, kind])
    return ("an " if text[0] in "aeiou" else "a ") + text


def _relation(scene: Scene, one: list[int], two: list[int], rng: _Rng) -> str:
    """Return a relation that holds between every member of `one` and of `two`; "and" or "with" where none does."""
    pairs = list(itertools.product(one, two))
    if all((i, j) in scene.occlusions for i, j in pairs):
        return "in front of" if rng.random() < _FRONT else _pick(rng, ("partly hiding", "covering", "overlapping"))
    if all((j, i) in scene.occlusions for i, j in pairs):
        return _pick(rng, ("behind", "behind", "partly hidden by"))
    a, b, size = scene.things, scene.things, scene.image.shape[0]
    across = [(a[i].x - b[j].x) / size for i, j in pairs]
    down = [(a[i].y - b[j].y) / size for i, j in pairs]
    options = ["and", "with"]
    if all(abs(x) > 0.25 and abs(y) < 0.3 for x, y in zip(across, down, strict=True)):
        options += ["next to", "next to", "beside", "near"]
        options += ["left of"] * all(x < 0 for x in across)
    if all(abs(y) > 0.25 and abs(x) < 0.2 for x, y in zip(across, down, strict=True)):
        options += ["above"] * 3 * all(y < 0 for y in down) + ["below"] * 3 * all(y > 0 for y in down)
    return _pick(rng, options)


def write_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write one sentence or phrase about the scene; every class it names is visible, and every relation holds."""
    kinds = list(dict.fromkeys(t.kind for t in scene.things))
    kinds = [kinds[i] for i in rng.permutation(len(kinds))]
    if len(kinds) > 1 and rng.random() < 0.2:
        kinds = kinds[:-1]
    groups = [[i for i, t in enumerate(scene.things) if t.kind == kind] for kind in kinds]
    names = [_name([scene.things[i] for i in group], rng) for group in groups]
    place = _place(scene, rng)
    relation = _relation(scene, groups[0], groups[1], rng) if len(names) > 1 else ""
    joined = relation in ("", "and")
    if len(names) <= 2:
        body = f" {relation} ".join(names)
    elif joined or len(names) == 4:
        body, joined = ", ".join(names[:-1]) + " and " + names[-1], True
    else:
        body = f"{names[0]} {relation} {names[1]} {'and' if relation == 'with' else 'with'} {names[2]}"
    plural = len(groups[0]) > 1 or (joined and len(names) > 1)
    form = rng.random()
    if form < 0.25:
        text = f"there {'are' if len(groups[0]) > 1 else 'is'} {body} {place}"
    elif form < 0.4 and place:
        text = f"{place} there {'are' if len(groups[0]) > 1 else 'is'} {body}"
    elif form < 0.65 and place and (joined or len(names) == 1):
        verb = _pick(rng, ("are", "are", "can be seen") if plural else ("is", "sits", "stands", "can be seen"))
        text = f"{body} {verb} {place}"
    elif form < 0.65 and not joined and relation in ("next to", "beside", "near", "behind", "above", "below"):
        text = f"{names[0]} {'are' if plural else 'is'} {body.removeprefix(names[0]).strip()} {place}"
    else:
        text = f"{body} {place}"
    text = text.strip()
    return text[0].upper() + text[1:] + "." if rng.random() < 0.6 else text
