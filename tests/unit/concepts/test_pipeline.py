import pytest
import spacy
import torch

from simzss.concepts.pipeline import ConceptPipeline
from simzss.errors import InputError
from tests.support.language import PIPELINE_NAME, pipeline, tiny_pipeline_without_parser


def refused(name) -> str:
    with pytest.raises(InputError) as caught:
        ConceptPipeline(str(name))
    return str(caught.value)


def test_pipeline_without_parser(tmp_path):
    folder = tiny_pipeline_without_parser(tmp_path / "tiny")
    message = refused(folder)
    assert str(folder) in message and "no parser" in message


def test_pipeline_without_lemmatizer(tmp_path):
    spacy.load(PIPELINE_NAME, exclude=["lemmatizer", "ner"]).to_disk(tmp_path / "p")
    message = refused(tmp_path / "p")
    assert "no lemmatizer" in message and "parser" in message


def test_pipeline_in_a_folder(tmp_path):
    spacy.load(PIPELINE_NAME, exclude=["ner"]).to_disk(tmp_path / "p")
    captions = ["two tennis rackets on a table", "Men riding horses"]
    from_folder = list(ConceptPipeline(str(tmp_path / "p")).annotate(captions))
    assert from_folder == list(pipeline().annotate(captions))
    assert from_folder[0].concepts


def test_not_installed_names_the_nearest():
    message = refused("en_core_web_sm_vbspaci")
    assert "en_core_web_sm_vbspaci is not installed" in message
    assert f"did you mean {PIPELINE_NAME}" in message


@pytest.mark.parametrize("content", [None, "meta.json"])
def test_folder_that_is_no_pipeline(tmp_path, content):
    folder = tmp_path / "photos"
    folder.mkdir()
    if content is not None:
        (folder / content).write_text("{}", encoding="utf-8")
    message = refused(folder)
    assert str(folder) in message
    assert "not installed" not in message


def test_file_that_is_no_pipeline(tmp_path):
    (tmp_path / "en.txt").write_text("x", encoding="utf-8")
    assert "is not a spaCy pipeline folder" in refused(tmp_path / "en.txt")


def test_broken_pipeline_folder(tmp_path):
    spacy.load(PIPELINE_NAME, exclude=["ner"]).to_disk(tmp_path / "p")
    (tmp_path / "p" / "parser" / "model").write_bytes(b"x")
    assert "does not load" in refused(tmp_path / "p")


def test_package_that_is_no_pipeline():
    assert "pytest" in refused("pytest")


def test_pipeline_of_a_language_that_does_not_import(tmp_path):
    spacy.blank("en").to_disk(tmp_path / "p")
    config = tmp_path / "p" / "config.cfg"
    config.write_text(config.read_text(encoding="utf-8").replace('lang = "en"', 'lang = "zz"'), encoding="utf-8")
    assert "does not load" in refused(tmp_path / "p")


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_order_and_count_are_kept(batch_size, monkeypatch):
    monkeypatch.setattr(pipeline(), "batch_size", batch_size)
    captions = ["a dog", "", "a cat on a mat", "...", " ", "a dog", "🐶", "\n", "İ zebra", "a horse, a cow"] * 3
    annotated = list(pipeline().annotate(iter(captions)))
    assert [caption.text for caption in annotated] == captions
    assert annotated[:10] == annotated[10:20] == annotated[20:]
    lemmas = [[concept.lemma for concept in caption.concepts] for caption in annotated[:10]]
    assert lemmas[0] == ["dog"] and lemmas[2] == ["cat", "mat"] and lemmas[9] == ["horse", "cow"]
    assert lemmas[1] == lemmas[3] == lemmas[4] == lemmas[7] == []


def test_order_and_count_are_kept_over_memory_zones(monkeypatch):
    monkeypatch.setattr("simzss.concepts.pipeline._ZONE", 4)
    captions = [f"a dog and {number} cats near the blorp{number}" for number in range(11)]
    annotated = list(pipeline().annotate(captions))
    assert [caption.text for caption in annotated] == captions
    # Words of an earlier zone must still be there when its memory is gone.
    for number, caption in enumerate(annotated):
        assert [c.lemma for c in caption.concepts][:2] == ["dog", "cat"]
        assert caption.concepts[-1].text == f"blorp{number}"


def test_no_caption_is_fine():
    assert list(pipeline().annotate([])) == []


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_accelerator_that_is_not_there():
    with pytest.raises(InputError) as caught:
        ConceptPipeline(PIPELINE_NAME, accelerator=True)
    assert str(caught.value).startswith("parse_on_accelerator: spaCy finds none")


def test_info_says_which_pipeline_made_the_concepts():
    assert pipeline().info == {"name": PIPELINE_NAME, "version": "3.8.0", "spacy": spacy.__version__}
