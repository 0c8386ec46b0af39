"""Text encoders: the tower from scratch, pretrained ones, their tokenizers, and batches of texts."""

import json

import pytest
import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, RobertaConfig, RobertaModel

from simzss.models.build import build_text_encoder
from simzss.models.settings import ScratchText
from simzss.models.text import rebuild_text_encoder
from tests.support.language import tokenizer
from tests.support.models import BERT_WORDS, encode_alone, make_bert, make_scratch, refused, save_bert

TEXTS = ["a photo of a cat.", "the green dog is here", "dogs"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(params=["scratch", "bert"])
def encoder(request, bert_folder):
    return (make_scratch() if request.param == "scratch" else make_bert(bert_folder)).eval()


# The tower from scratch -------------------------------------------------------------------------------------------


def test_size_of_the_paper_s_tower():
    with torch.device("meta"):
        encoder = build_text_encoder(ScratchText(), 768)
    count = sum(parameter.numel() for parameter in encoder.parameters())
    vocabulary, context, width, layers = 49_408, 77, 512, 12
    block = 4 * (width * width + width) + 2 * 4 * width * width + 4 * width + width + 2 * 2 * width
    assert count == vocabulary * width + context * width + layers * block + 2 * width + width * 768
    assert count == pytest.approx(63.5e6, rel=0.005)
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_later_tokens_do_not_reach_earlier_ones():
    encoder = make_scratch()
    ids = torch.tensor(encoder.tokenize(["one two three four five six seven"])["input_ids"])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        before = encoder(ids, mask).tokens
        for place in range(1, ids.shape[1]):
            changed = ids.clone()
            changed[0, place] = 320
            after = encoder(changed, mask).tokens
            torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-6)
            for later in range(place, ids.shape[1]):
                assert (after[0, later] - before[0, later]).abs().max() > 1e-4, (place, later)


# Either tower -----------------------------------------------------------------------------------------------------


def padded(encoder, texts, junk, extra=3):
    """Ids and mask of several texts, padded with the id `junk`."""
    rows = encoder.tokenize(texts)["input_ids"]
    length = max(map(len, rows)) + extra
    ids = torch.full((len(rows), length), junk)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


@pytest.mark.parametrize("junk", ["pad", "word"])
def test_padding_changes_nothing(encoder, junk):
    ids, mask = padded(encoder, TEXTS, encoder.tokenizer.pad_token_id if junk == "pad" else 7)
    with torch.no_grad():
        together = encoder(ids, mask)
    for i, text in enumerate(TEXTS):
        tokens, alone = encode_alone(encoder, text)
        length = len(tokens["input_ids"][0])
        torch.testing.assert_close(together.tokens[i, :length], alone.tokens[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.pooled[i], alone.pooled[0], rtol=1e-5, atol=1e-5)


def test_pooling_and_projection(encoder):
    assert encoder.pooling == {"CLIPTextModel": "eot", "BertModel": "mean"}[type(encoder.body).__name__]
    weight = encoder.projection.weight.double()
    assert weight.shape == (64, 32) and encoder.projection.bias is None
    for text in TEXTS:
        tokens, features = encode_alone(encoder, text)
        ids = tokens["input_ids"][0]
        with torch.no_grad():
            hidden = encoder.body(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
        rows = torch.stack([weight @ row for row in hidden])
        torch.testing.assert_close(features.tokens[0].double(), rows, rtol=1e-5, atol=1e-6)
        if encoder.pooling == "eot":
            assert ids[-1] == 49_407 and ids.count(49_407) == 1
            expected = rows[len(ids) - 1]
        else:
            expected = sum(rows) / len(ids)
        torch.testing.assert_close(features.pooled[0].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_batches_of_texts(encoder, batch_size):
    texts = [*TEXTS, "dog " * 100, "a dog"]
    spans = [(13, 16), (4, 9), (0, 4), (0, 7), (2, 5)]  # "cat", "green", "dogs", "dog dog", "dog"
    pooled, sums = encoder.encode(texts, spans, batch_size)
    assert pooled.shape == sums.shape == (5, 64) and not pooled.requires_grad
    for i, (text, (start, end)) in enumerate(zip(texts, spans, strict=True)):
        tokens, alone = encode_alone(encoder, text)
        torch.testing.assert_close(pooled[i], alone.pooled[0], rtol=1e-5, atol=1e-5)
        rows = [alone.tokens[0, j] for j, (first, last) in enumerate(tokens["offset_mapping"][0])
                if first >= start and last <= end and last > first]  # fmt: skip
        torch.testing.assert_close(sums[i], sum(F.normalize(row, dim=0) for row in rows), rtol=1e-5, atol=1e-5)
    assert torch.equal(encoder.encode(texts, batch_size=batch_size)[0], pooled)
    assert [found.shape for found in encoder.encode([], [])] == [(0, 64), (0, 64)]
    assert encoder.encode(texts)[1] is None


def test_spans_without_a_token(encoder):
    for text, span in (("dog " * 100, (396, 399)), ("a dog", (2, 2))):
        refused(lambda text=text, span=span: encoder.encode([text], [span]), "class name", f"{encoder.context_length}")


def test_truncation_keeps_the_ends(encoder):
    rows = encoder.tokenize(["dog " * 100, "a dog"])
    limit = encoder.context_length
    start, end = (
        (49_406, 49_407) if encoder.pooling == "eot" else (BERT_WORDS.index("[CLS]"), BERT_WORDS.index("[SEP]"))
    )
    for ids, offsets, length in zip(rows["input_ids"], rows["offset_mapping"], (limit, 4), strict=True):
        assert len(ids) == len(offsets) == length
        assert (ids[0], ids[-1]) == (start, end)


# CLIP's tokenizer -------------------------------------------------------------------------------------------------

STRINGS = [
    "a photo of a cat.", "A PHOTO OF A CAT", "Café au lait, crème brûlée", "ÉCOLE NATIONALE", "naïve façade",
    "Ünïcödé", "🐶 and 🐱", "👩‍👩‍👧 family 🇫🇷 flag", "DON'T stop; they're here, I'll wait", "100% sure, 3,5 kg!",
    "  many   spaces\t\nand lines ", "hello...world", "日本語の文字 and 中文abc", "½ cup of x²", "a_b-c/d (e) [f] {g}",
    "$5.99 (USD) #1 @home", "Straße", "İstanbul", "wait—what–now…", "", "?!", "antidisestablishmentarianism",
]  # fmt: skip


@pytest.mark.parametrize("text", STRINGS)
def test_clip_tokenizer_equals_open_clip_s(text):
    reference = SimpleTokenizer()
    expected = [reference.sot_token_id, *reference.encode(text), reference.eot_token_id]
    assert tokenizer()(text)["input_ids"] == expected


def test_clip_offsets_point_at_the_words():
    text = "Two Dogs, running on GREEN grass."
    found = tokenizer()(text, return_offsets_mapping=True)
    pieces = tokenizer().convert_ids_to_tokens(found["input_ids"])
    assert found["offset_mapping"][0] == found["offset_mapping"][-1] == (0, 0)
    for piece, (start, end) in zip(pieces[1:-1], found["offset_mapping"][1:-1], strict=True):
        assert text[start:end].lower() == piece.removesuffix("</w>")
    assert "".join(text[start:end] for start, end in found["offset_mapping"]) == text.replace(" ", "")


# A pretrained transformers directory ------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", [0, 1, 2, 3, "all"])
def test_which_parameters_learn(trainable, bert_folder):
    encoder = make_bert(bert_folder, trainable_layers=trainable).train()
    layers = range(0 if trainable == "all" else 3 - trainable, 3)
    parts = ("projection.", *(f"body.encoder.layer.{number}." for number in layers))
    parts += ("body.embeddings.",) if trainable == "all" else ()
    expected = {name for name, _ in encoder.named_parameters() if name.startswith(parts)}
    learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert learning == expected and len(learning) == 1 + 16 * len(layers) + (5 if trainable == "all" else 0)
    ids, mask = padded(encoder, TEXTS, 0)
    encoder(ids, mask).pooled.square().sum().backward()
    assert {name for name, parameter in encoder.named_parameters() if parameter.grad is not None} == learning


def last_frozen_output(encoder, trainable, ids, mask):
    """Output of the last frozen part and of the whole encoder."""
    parts = [encoder.body.embeddings, *encoder.body.encoder.layer]
    seen = []
    handle = parts[3 - trainable].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        features = encoder(ids, mask)
    handle.remove()
    return (seen[0][0] if isinstance(seen[0], tuple) else seen[0]).clone(), features.tokens


@pytest.mark.parametrize("trainable", [0, 1, 2, 3])
def test_frozen_layers_have_no_dropout(trainable, bert_folder):
    encoder = make_bert(bert_folder, trainable_layers=trainable)
    ids, mask = padded(encoder, TEXTS, 0)
    frozen_still, still = last_frozen_output(encoder.eval(), trainable, ids, mask)
    encoder.train()
    assert encoder.training
    first_frozen, first = last_frozen_output(encoder, trainable, ids, mask)
    second_frozen, second = last_frozen_output(encoder, trainable, ids, mask)
    assert torch.equal(first_frozen, frozen_still) and torch.equal(second_frozen, frozen_still)
    if trainable == 0:
        assert torch.equal(first, still)
    else:
        assert not torch.equal(first, second) and not torch.equal(first, still)


def test_weights_are_those_of_the_directory(bert_folder):
    stored = load_file(bert_folder / "model.safetensors")
    body = make_bert(bert_folder).body.state_dict()
    assert set(stored) <= set(body) and len(stored) > 50
    for name, value in stored.items():
        assert torch.equal(body[name], value), name


def test_layers_that_are_not_there(bert_folder):
    refused(lambda: make_bert(bert_folder, trainable_layers=4), "text.trainable_layers=4", "0 to 3", "all")


def test_context_longer_than_the_positions(bert_folder):
    assert make_bert(bert_folder, context_length=24).context_length == 24
    refused(lambda: make_bert(bert_folder, context_length=25), "text.context_length=25", "24", str(bert_folder))


def without_tokenizer(folder):
    config = BertConfig(vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()


def with_images(folder):
    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(text_config=part | {"vocab_size": 20}, vision_config=part | {"image_size": 16, "patch_size": 8})
    CLIPModel(config).save_pretrained(folder)


def pickle_only(folder):  # never read, even though it is there
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def tensors(change):
    def damage(folder):
        state = change(load_file(folder / "model.safetensors"))
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


BROKEN = {
    "missing": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "empty": lambda folder: [file.unlink() for file in folder.iterdir()],
    "broken config": lambda folder: (folder / "config.json").write_text("{"),
    "pickle only": pickle_only,
    "broken tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{"),
    "empty tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "tokenizer of no kind": lambda folder: (folder / "tokenizer.json").write_text('{"model": {"type": "None"}}'),
    "no tokenizer": without_tokenizer,
    "text and images": with_images,
    "broken weights": lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100),
    "a layer is missing": tensors(lambda state: {key: v for key, v in state.items() if "layer.2." not in key}),
    "other names": tensors(lambda state: {f"other.{key}": value for key, value in state.items()}),
    "other shapes": tensors(lambda state: state | {"embeddings.word_embeddings.weight": torch.zeros(7, 32)}),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_folders_that_are_no_text_model(kind, tmp_path):
    folder = save_bert(tmp_path / "text")
    BROKEN[kind](folder)
    refused(lambda: make_bert(folder), str(folder), "tokenizer" if kind == "no tokenizer" else "")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_that_a_config_names_is_not_fetched(key, tmp_path):
    """`owner/name` there is a kernel on the hub: code."""
    folder = save_bert(tmp_path / "text")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {key: "someone/kernel"}), encoding="utf-8")
    encoder = make_bert(folder)
    stored = encoder.architecture
    stored["body"] |= {key: "someone/kernel"}
    rebuilt = rebuild_text_encoder(stored, 64, encoder.tokenizer)
    for made in (encoder, rebuilt):
        assert made.body.config._attn_implementation in ("sdpa", "eager")


def test_positions_that_tokens_cannot_use(tmp_path):
    folder = save_bert(tmp_path / "text")
    config = RobertaConfig(vocab_size=len(BERT_WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=32, max_position_embeddings=24)  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    fitting = make_bert(folder, context_length=22).eval()
    assert encode_alone(fitting, "dog " * 30)[1].tokens.shape == (1, 22, 64)
    refused(lambda: make_bert(folder, context_length=24), "text.context_length=24", "22")


# Compilation ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scratch", "bert"])
def test_compiled_once_for_all_shapes(kind, bert_folder):
    """By the tracer alone (backend `eager`), which needs no compiler: what it makes of one shape serves the others."""
    encoder = (make_scratch() if kind == "scratch" else make_bert(bert_folder)).eval()
    names = set(encoder.state_dict())
    shapes = [(4, 7), (9, 5), (3, 16), (6, 11), (2, 3)]
    blocks = [(torch.randint(len(BERT_WORDS), shape), torch.ones(shape, dtype=torch.long)) for shape in shapes]
    for _, mask in blocks:
        mask[0, -1] = 0
    expected = [encoder(*block) for block in blocks]
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    encoder.compile_body(backend=backend)
    made = []  # graphs after each shape
    for block, plain in zip(blocks, expected, strict=True):
        found = encoder(*block)
        made.append(len(graphs))
        torch.testing.assert_close(found.tokens, plain.tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.pooled, plain.pooled, rtol=1e-5, atol=1e-5)
    assert made == [made[0]] * len(blocks) and made[0] > 0
    assert set(encoder.state_dict()) == names
    torch.compiler.reset()
