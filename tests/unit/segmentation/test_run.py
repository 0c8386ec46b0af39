import shutil

import numpy as np
import pytest
from PIL import Image

from simzss.cli import dispatch
from simzss.models.checkpoint import load_model, save_model
from simzss.models.sam.load import load_sam
from simzss.models.simzss import SimZSS
from simzss.segmentation.background import Background
from simzss.segmentation.inference.aggregate import Correlation
from simzss.segmentation.protocol import Protocol
from simzss.segmentation.refine.sam import SamRefinement
from simzss.segmentation.run import _read
from simzss.segmentation.segmenter import Segmenter
from tests.support.files import picture
from tests.support.models import backbone_options, make_backbone, make_scratch, refused, save_backbone
from tests.unit.models.sam.tiny import save_first, save_second

SMALL = ["protocol.short_side=64", "protocol.crop_size=64", "protocol.stride=32", "protocol.templates=photo",
         "protocol.temperature=0.05", "precision=32-true"]  # fmt: skip
TRIDENT = ["inference=splice", "correlate=sam", "refine=sam", "refine.threshold=0.3", "refine.min_area=1",
           "refine.min_iou=0.17"]  # fmt: skip
PROTOCOL = Protocol("whole", "splice", 64, 64, 32, "photo", "mean", 0.05)
REDRAWN = SamRefinement(0.3, 1, 0.17)


def test_photos_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    (photo,), error = _read([tmp_path / "a.jpg"])
    assert photo.size == (20, 40) and error is None


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_photos_before_a_broken_one_are_read(tmp_path, data):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(data)
    photos, error = _read([tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.png"])
    assert len(photos) == 1 and str(error).startswith(f"{tmp_path}/b.png is no readable image: ")


# A proxy, a correlation and a refinement by their words --------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder, a SAM of each generation and two photos."""
    folder = tmp_path_factory.mktemp("segment")
    spec = backbone_options(weights=str(save_backbone(folder / "vit.safetensors")))
    save_model(SimZSS(make_backbone(**spec), make_scratch()).eval(), folder / "model", spec, {"readout": "concept"})
    save_first(folder / "sam")
    save_second(folder / "sam2")
    for number, size in enumerate([(80, 64), (50, 70)]):
        picture(number, size).save(folder / f"{number}.png")
    return folder


def segment(folder, output, *words: str) -> list[np.ndarray]:
    """Masks of both photos."""
    dispatch(["segment", f"{folder}/0.png", f"{folder}/1.png", f"model={folder}/model", "classes=cat,dog,tree",
              f"output_dir={output}", *SMALL, *words])  # fmt: skip
    return [np.asarray(Image.open(output / f"{number}_mask.png")) for number in range(2)]


@pytest.mark.parametrize(("proxy", "background"), [(None, None), ("sam", Background("threshold", threshold=0.35))])
def test_words_are_a_segmenter(folder, tmp_path, proxy, background):
    words = [] if background is None else ["background.kind=threshold", "background.threshold=0.35"]
    words += [] if proxy is None else ["proxy=sam"]
    found = segment(folder, tmp_path / "out", *TRIDENT, f"sam.weights={folder}/sam", *words)
    options = {"name": "sam", "timm_name": None, "weights": None, "features": "last", "shift": 1.2, "gain": 3.0}
    guided = {} if proxy is None else {"features": "proxy", "proxy": options}
    model, _ = load_model(folder / "model", **guided)
    made = Segmenter(model, PROTOCOL, "concept", "32-true", refinement=REDRAWN,
                     correlation=Correlation("attention", 1.2, 0.1, 1), sam=load_sam(str(folder / "sam")))  # fmt: skip
    made.set_classes(["cat", "dog", "tree"], background)
    for number, mask in enumerate(found):
        assert np.array_equal(mask, made.predict(Image.open(folder / f"{number}.png")).mask.numpy())
    drawn = Image.open(tmp_path / "out" / "1_overlay.png")
    assert drawn.size[0] >= 50 and drawn.size[1] >= 70


def test_each_word_has_its_own_influence(folder, tmp_path):
    """And with the second generation of SAM, too, which correlates by its embedding."""
    weights = f"sam.weights={folder}/sam2"
    words = {
        "plain": [],
        "correlate": ["correlate=sam"],
        "proxy": ["proxy=sam"],
        "refine": ["refine=sam", "refine.threshold=0.3", "refine.min_area=1", "refine.min_iou=0.5"],
        "vote": ["refine=vote", "refine.points=4", "refine.min_iou=0.5", "refine.min_stability=0"],
    }
    masks = {name: segment(folder, tmp_path / name, *chosen, weights) for name, chosen in words.items()}
    assert len({masks[name][0].tobytes() for name in masks}) == len(words)


def test_sam_that_nothing_asks_is_not_read(folder, tmp_path):
    missing = f"sam.weights={tmp_path}/nowhere/sam.pt"
    assert segment(folder, tmp_path / "out", "inference=splice", "correlate=patches", missing)[0].shape == (64, 80)


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["refine=sam", "refine=vote", "correlate=sam", "proxy=sam"])
def test_sam_that_is_not_there(folder, tmp_path, word):
    weights = f"sam.weights={tmp_path}/nowhere/mobile_sam.pt"
    refused(lambda: segment(folder, tmp_path / "out", word, weights), weights, "does not exist")


def test_sam_of_another_kind(folder, tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text('{"model_type": "clip"}')
    refused(lambda: segment(folder, tmp_path / "out", "refine=sam", f"sam.weights={tmp_path}/clip"),
            f"sam.weights={tmp_path}/clip is a clip model", "sam2")  # fmt: skip
    refused(lambda: segment(folder, tmp_path / "out", "refine=sam", f"sam.weights={folder}/model"),
            f"sam.weights={folder}/model")  # fmt: skip
    refused(lambda: segment(folder, tmp_path / "out", "correlate=attention", f"sam.weights={folder}/sam2"),
            "correlate.kind=attention", "use embedding")  # fmt: skip


def test_sam_of_another_size(folder, tmp_path):
    """Weights and configuration that do not go together, and an encoder for another size than the prompts'."""
    shutil.copytree(folder / "sam", tmp_path / "sam")
    text = (tmp_path / "sam" / "config.json").read_text()
    for number, (old, new) in enumerate([('"hidden_size": 32', '"hidden_size": 48'),
                                         ('"image_size": 64', '"image_size": 96')]):  # fmt: skip
        (tmp_path / "sam" / "config.json").write_text(text.replace(old, new, 1))
        weights = f"sam.weights={tmp_path}/sam"
        says = refused(
            lambda weights=weights, n=number: segment(folder, tmp_path / f"{n}", "refine=sam", weights), weights
        )
        assert ("8 x 8" in says) == (number == 1) and "above" not in says  # nothing was printed above


BAD = [
    ("inference=slid", ("inference=slid is unknown", "slide")),
    ("protocol.inference=slid", ("protocol.inference=slid is unknown", "slide")),
    ("correlate=smm", ("correlate=smm is unknown", "sam")),
    ("correlate.cos_factor=-1", ("correlate.cos_factor=-1", "at least 0")),
    ("correlate.cos_factor=high", ("correlate.cos_factor=high", "a number")),
    ("correlate.parts=0", ("correlate.parts=0", "at least 1")),
    ("correlate.parts=1.5", ("correlate.parts=1.5", "an integer")),
    ("correlate.temperature=0", ("correlate.temperature=0", "above 0")),
    ("refine=samm", ("refine=samm is unknown", "sam")),
    ("refine.threshold=2", ("refine.threshold=2", "below 1")),
    ("refine.min_iou=1", ("refine.min_iou=1", "below 1")),
    ("refine.background=none", ("refine.background=none is unknown", "compete")),
    ("proxy=dino_vitb14", ("proxy=dino_vitb14 is unknown", "dino_vitb16")),
    ("experiment=real_cpu", ("experiment=real_cpu is unknown", "trident")),
]


@pytest.mark.parametrize(("word", "says"), BAD, ids=[word for word, _ in BAD])
def test_values_that_no_segmenter_could_have(folder, tmp_path, capsys, word, says):
    """Refused before a model is read, and by `config validate`."""
    words = ["correlate=sam", "refine=sam", f"sam.weights={folder}/sam"]
    key = word.partition("=")[0]
    words = [*(given for given in words if not given.startswith(f"{key}=")), word]
    refused(lambda: segment(folder, tmp_path / "out", *words), *says)
    assert not (tmp_path / "out").exists()
    common = ["model=m", "benchmark=voc21", "benchmark.root=r", *words]
    refused(lambda: dispatch(["config", "validate", "eval", *common]), *says)
    assert capsys.readouterr().out == ""


def test_windows_of_scores_cannot_be_correlated(folder, tmp_path):
    words = ["inference=slide", "correlate=sam", f"sam.weights={folder}/sam"]
    refused(lambda: segment(folder, tmp_path / "out", *words), "correlate=sam", "splice", "not slide")


def test_proxy_beside_other_features(folder, tmp_path):
    words = ["proxy=sam", "backbone.features=self", f"sam.weights={folder}/sam"]
    refused(lambda: segment(folder, tmp_path / "out", *words), "proxy=sam", "features=proxy")
    refused(lambda: segment(folder, tmp_path / "out", "backbone.features=proxy"), "proxy=NAME")


@pytest.mark.parametrize("verb", ["eval", "segment"])
def test_valid_words_are_valid(capsys, verb):
    own = ["benchmark=voc21", "benchmark.root=r"] if verb == "eval" else ["classes=cat,dog"]
    for words in (TRIDENT, ["experiment=trident", "proxy=sam", "refine=vote"]):
        dispatch(["config", "validate", verb, "model=m", *own, *words])
        assert capsys.readouterr().out == "valid\n"
