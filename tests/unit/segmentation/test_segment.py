"""`simzss segment` with a proxy, an aggregation and a refinement by their words."""

import shutil

import numpy as np
import pytest
from PIL import Image

from simzss.cli import dispatch
from simzss.data.settings import Background
from simzss.models.checkpoint import load_model, save_model
from simzss.models.settings import ProxySettings
from simzss.models.simzss import SimZSS
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import AggregateSettings, Protocol, SamRefinementSettings
from tests.support.files import picture
from tests.support.models import make_backbone, make_scratch, refused, save_backbone
from tests.unit.models.sam.tiny import save_first, save_second

SMALL = ["protocol.short_side=64", "protocol.crop_size=64", "protocol.stride=32", "protocol.templates=photo",
         "precision=32-true"]  # fmt: skip
REDRAWN = ["refine=sam", "refine.threshold=0.3", "refine.min_area=1"]
TRIDENT = ["inference=stitch", "aggregate=sam", *REDRAWN, "refine.min_iou=0.17"]
PROTOCOL = Protocol(inference="stitch", short_side=64, crop_size=64, stride=32, templates="photo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, a SAM of each generation and two photos."""
    folder = tmp_path_factory.mktemp("segment")
    weights = str(save_backbone(folder / "vit.safetensors"))
    save_model(SimZSS(make_backbone(weights=weights), make_scratch()).eval(), folder / "model")
    save_first(folder / "sam")
    save_second(folder / "sam2")
    for number, size in enumerate([(80, 64), (50, 70)]):
        picture(number, size).save(folder / f"{number}.png")
    return folder


def segment(folder, output, *words: str) -> list[np.ndarray]:
    """Masks of both photos."""
    dispatch(["segment", f"{folder}/0.png", f"{folder}/1.png", f"model={folder}/model", "classes=cat,dog/puppy,tree",
              f"output_dir={output}", *SMALL, *words])  # fmt: skip
    return [np.asarray(Image.open(output / f"{number}_mask.png")) for number in range(2)]


@pytest.mark.parametrize("guided", [False, True])
def test_words_are_a_segmenter(folder, tmp_path, guided):
    rule = Background(kind="threshold", threshold=0.35) if guided else None
    words = ["proxy=sam", "background.kind=threshold", "background.threshold=0.35"] if guided else []
    found = segment(folder, tmp_path / "out", *TRIDENT, f"sam.weights={folder}/sam", *words)
    options = {"features": "proxy", "proxy": ProxySettings(name="sam")} if guided else {}
    made = Segmenter(
        load_model(folder / "model", **options),
        PROTOCOL,
        precision="32-true",
        refine=SamRefinementSettings(threshold=0.3, min_area=1, min_iou=0.17),
        aggregate=AggregateSettings(kind="attention", cos_factor=1.2, parts=1),
        sam=folder / "sam",
    )
    for number, mask in enumerate(found):
        prediction = made.predict(folder / f"{number}.png", ["cat", "dog/puppy", "tree"], rule)
        assert np.array_equal(mask, prediction.mask.numpy())
        drawn = Image.open(tmp_path / "out" / f"{number}_overlay.png")
        assert np.array_equal(np.asarray(drawn), np.asarray(prediction.overlay()))


def test_each_word_has_its_own_influence(folder, tmp_path, caplog):
    """And with the second generation of SAM, too, which aggregates by its embedding."""
    words = {
        "plain": [],
        "aggregate": ["aggregate=sam"],
        "proxy": ["proxy=sam"],
        "refine": [*REDRAWN, "refine.min_iou=0.5"],
        "vote": ["refine=vote", "refine.points=4", "refine.min_iou=0.5", "refine.min_stability=0"],
    }
    caplog.set_level("INFO")
    masks = {}
    for name, chosen in words.items():
        caplog.clear()
        masks[name] = segment(folder, tmp_path / name, *chosen, f"sam.weights={folder}/sam2")
        assert ("regions: " in caplog.text) == (name in ("refine", "vote"))
    assert len({masks[name][0].tobytes() for name in masks}) == len(words)


# Photos ---------------------------------------------------------------------------------------------------------------


def test_all_photos_but_broken_ones_are_segmented(folder, tmp_path):
    """And named at the end; the rest is done when they are mended."""
    broken, output = tmp_path / "broken.png", tmp_path / "out"
    broken.write_bytes(b"no image")
    paths = [folder / "0.png", broken, folder / "1.png"]
    command = ["segment", *map(str, paths), f"model={folder}/model", "classes=cat,dog", f"output_dir={output}", *SMALL]
    refused(lambda: dispatch(command), f"{broken} is no readable image: ", "the same command goes on")
    assert sorted(path.name for path in output.glob("*.png")) == [
        "0_mask.png", "0_overlay.png", "1_mask.png", "1_overlay.png",
    ]  # fmt: skip
    picture(5).save(broken)
    dispatch(command)
    assert len(list(output.glob("*.png"))) == 6 and not (output / ".progress").exists()


@pytest.mark.parametrize(
    ("images", "words", "says"),
    [
        ([], [], "no image given"),
        (["nowhere.png"], [], "image nowhere.png does not exist"),
        (["{0}/0.png", "{0}/sam/../0.png"], [], "two images are named '0'"),
        (["{0}/0.png"], ["classes="], "classes is empty"),
        (["{0}/0.png"], ["classes=cat,cat"], "class 'cat' is listed twice"),
        (["{0}/0.png"], ["classes=background", "background.kind=threshold"], "'background' is listed twice"),
        (["{0}/0.png"], ["background.kind=words"], "background.words"),
    ],
)
def test_refused_before_a_model_is_read(folder, tmp_path, images, words, says):
    given = [image.format(folder) for image in images]
    output = tmp_path / "out"
    refused(lambda: dispatch(["segment", *given, "model=nowhere", "classes=cat", *words, f"output_dir={output}"]), says)
    assert not output.exists()


# Bad settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["refine=sam", "refine=vote", "aggregate=sam", "proxy=sam"])
def test_sam_that_is_not_there(folder, tmp_path, word):
    """Where nothing asks it, it is not read."""
    weights = f"sam.weights={tmp_path}/nowhere/mobile_sam.pt"
    refused(lambda: segment(folder, tmp_path / "out", word, weights), weights, "does not exist")
    assert segment(folder, tmp_path / "out", "inference=stitch", "aggregate=patches", weights)[0].shape == (64, 80)


def test_sam_of_another_kind_or_size(folder, tmp_path):
    def fails(*words: str, says: tuple[str, ...]) -> str:
        return refused(lambda: segment(folder, tmp_path / "out", *words), *says)

    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    weights = f"sam.weights={tmp_path}/clip"
    fails("refine=sam", weights, says=(f"{weights} is a clip model", "sam2"))
    fails("refine=sam", f"sam.weights={folder}/model", says=(f"sam.weights={folder}/model",))
    attention = ("aggregate.kind=attention", "use embedding")
    fails("aggregate=attention", f"sam.weights={folder}/sam2", says=attention)
    shutil.copytree(folder / "sam", tmp_path / "sam")
    text, weights = (tmp_path / "sam" / "config.json").read_text(), f"sam.weights={tmp_path}/sam"
    # Weights and configuration that do not go together, and an encoder for another size than the prompts'.
    for old, new, says in [
        ('"hidden_size": 32', '"hidden_size": 48', ()),
        ('"image_size": 64', '"image_size": 96', ("8 x 8",)),
    ]:
        (tmp_path / "sam" / "config.json").write_text(text.replace(old, new, 1))
        assert "above" not in fails("refine=sam", weights, says=(weights, *says))  # nothing was printed above


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("inference=slid", "inference=slid"),
        ("protocol.inference=slid", "protocol.inference=slid is unknown"),
        ("aggregate=smm", "aggregate=smm is unknown"),
        ("aggregate.cos_factor=-1", "aggregate.cos_factor=-1 must be at least 0"),
        ("aggregate.cos_factor=high", "aggregate.cos_factor=high"),
        ("aggregate.parts=1.5", "aggregate.parts=1.5"),
        ("refine=samm", "refine=samm is unknown"),
        ("refine.threshold=2", "refine.threshold=2 must be below 1"),
        ("refine.background=none", "refine.background=none is unknown"),
        ("proxy=dino_vitb14", "proxy=dino_vitb14 is unknown"),
        ("experiment=real_cpu", "experiment=real_cpu is unknown"),
    ],
)
def test_values_that_no_segmenter_could_have(folder, tmp_path, word, says):
    """Refused before a model is read, and by `config validate`."""
    key = word.partition("=")[0]
    words = [given for given in ("aggregate=sam", "refine=sam") if not given.startswith(f"{key}=")]
    refused(lambda: segment(folder, tmp_path / "out", *words, word), says)
    assert not (tmp_path / "out").exists()
    common = ["model=m", "benchmark=voc21", "benchmark.root=r", *words, word]
    refused(lambda: dispatch(["config", "validate", "eval", *common]), says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inference=slide", "aggregate=sam", "sam.weights={}/sam"], ("aggregate=sam", "stitch", "not slide")),
        (["proxy=sam", "backbone.features=self", "sam.weights={}/sam"], ("proxy=sam", "features=proxy")),
        (["backbone.features=proxy"], ("proxy=NAME",)),
    ],
)
def test_words_that_do_not_go_together(folder, tmp_path, words, says):
    refused(lambda: segment(folder, tmp_path / "out", *(word.format(folder) for word in words)), *says)


@pytest.mark.parametrize("verb", ["eval", "segment"])
def test_valid_words_are_valid(capsys, verb):
    own = ["benchmark=voc21", "benchmark.root=r"] if verb == "eval" else ["classes=cat,dog"]
    for words in (TRIDENT, ["experiment=trident", "proxy=sam", "refine=vote"]):
        dispatch(["config", "validate", verb, "model=m", *own, *words])
        assert capsys.readouterr().out == "valid\n"
