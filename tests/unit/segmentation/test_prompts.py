"""Class names in prompts, against one prompt at a time in float64."""

from typing import get_args

import numpy as np
import pytest
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES

from simzss.models.settings import TextPooling
from simzss.models.simzss import SimZSS
from simzss.segmentation.prompts import TEMPLATES, embed_names, templates
from tests.support.models import encode_alone, make_backbone, make_bert, make_scratch, refused, save_bert, shaken

NAMES = ["cat", "green grass", "a dog", "tree", "dogs"]
POOLINGS = get_args(TextPooling)


@pytest.fixture(scope="module", params=["scratch", "bert"])
def model(request, tmp_path_factory):
    """A model with a text tower of its own; BERT's has another pooling and other special tokens."""
    if request.param == "scratch":
        text = make_scratch(context_length=24)
    else:
        text = make_bert(save_bert(tmp_path_factory.mktemp("text") / "bert"), context_length=24)
    return SimZSS(make_backbone(), shaken(text)).eval()


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector * vector).sum())


def by_hand(model: SimZSS, name: str, prompts, text_pooling: str) -> np.ndarray:
    """One name's vector in float64, prompt by prompt; the position of the name by counting tokens, not characters."""
    encoder = model.text_encoder
    total = 0
    for prompt in prompts:
        before, after = prompt.split("{}")
        tokens, features = encode_alone(encoder, before + name + after)
        first = 1 + len(encoder.tokenize([before])["input_ids"][0]) - 2
        last = first + len(encoder.tokenize([name])["input_ids"][0]) - 2
        sentence = unit(features.pooled[0].double().numpy())
        named = unit(sum(unit(row) for row in features.tokens[0, first:last].double().numpy()))
        assert len(tokens["input_ids"][0]) <= encoder.context_length
        total = total + {"sentence": sentence, "tokens": named, "both": unit(sentence + named)}[text_pooling]
    return unit(total / len(prompts))


@pytest.mark.parametrize("text_pooling", POOLINGS)
@pytest.mark.parametrize("template_set", ["name", "photo", "scene"])
def test_names_equal_a_loop(model, template_set, text_pooling):
    prompts = templates(template_set)
    found = embed_names(model, NAMES, prompts, text_pooling)
    assert found.shape == (len(NAMES), 64) and not found.requires_grad
    for name, row in zip(NAMES, found.double().numpy(), strict=True):
        np.testing.assert_allclose(row, by_hand(model, name, prompts, text_pooling), rtol=0, atol=1e-5, err_msg=name)
    apart = found @ found.T - torch.eye(len(NAMES))
    assert apart.max() < 0.999  # names differ, so that mixed up rows would be seen


@pytest.mark.parametrize("text_pooling", POOLINGS)
def test_more_prompts_than_go_in_at_once(model, text_pooling):
    """Five names in eighty prompts are 400 texts of many lengths, more than one batch."""
    prompts = templates("imagenet80")
    found = embed_names(model, NAMES, prompts, text_pooling).double().numpy()
    for i in (0, 3, 4):
        np.testing.assert_allclose(found[i], by_hand(model, NAMES[i], prompts, text_pooling), rtol=0, atol=1e-5)


def test_neighbours_change_nothing(model):
    together = embed_names(model, [*NAMES, "the green grass here is a photo of the tree"], templates("scene"), "both")
    for i, name in enumerate(NAMES):
        alone = embed_names(model, [name], templates("scene"), "both")[0]
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text_pooling", POOLINGS)
def test_name_too_long(model, text_pooling):
    name = "green " * 30 + "cat"
    refused(
        lambda: embed_names(model, ["cat", name], templates("photo"), text_pooling), "too long", "green", "24 tokens"
    )
    fits = "green " * 15 + "cat"
    assert embed_names(model, [fits], templates("photo"), text_pooling).shape == (1, 64)


def test_name_that_is_cut_off_in_one_prompt_only(model):
    name = " ".join(["tree"] * 18)  # 21 tokens by itself with the ends, 27 in the longest prompt
    assert embed_names(model, [name], templates("name"), "tokens").shape == (1, 64)
    refused(lambda: embed_names(model, [name], templates("scene"), "tokens"), "too long")


def test_templates():
    found = templates("imagenet80")
    assert len(found) == len(set(found)) == 80 and "itap of a {}." in found
    assert [template.format("cat") for template in found] == [template("cat") for template in OPENAI_IMAGENET_TEMPLATES]
    for name in (*TEMPLATES, "imagenet80"):
        assert all(prompt.count("{}") == 1 and prompt.count("{") == 1 for prompt in templates(name)), name
    assert templates("name") == ("{}",) and templates("photo") == ("a photo of a {}.",) and len(templates("scene")) == 7


def test_unknown_names(model):
    refused(lambda: embed_names(model, ["cat"], templates("photo"), "sentences"), "text_pooling=sentences", "sentence")
    refused(lambda: templates("imagenet"), "templates=imagenet", "imagenet80")
