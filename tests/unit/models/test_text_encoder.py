import json

import pytest
import torch
from open_clip import SimpleTokenizer
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, RobertaConfig, RobertaModel

from simzss.config import load_choice, to_plain
from simzss.models.text import build_text_encoder, rebuild_text_encoder
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
    options = to_plain(load_choice("text", "clip_base"))
    with torch.device("meta"):
        encoder = build_text_encoder(options.pop("kind"), 768, **options)
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


def test_unknown_kind():
    refused(lambda: build_text_encoder("scrach", 8), "text.kind=scrach", "scratch")


def test_heads_must_divide_the_width():
    refused(lambda: build_text_encoder("scratch", 8, layers=1, width=10, heads=3, context_length=8), "heads")


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


def test_pooling(encoder):
    for text in TEXTS:
        tokens, features = encode_alone(encoder, text)
        ids = tokens["input_ids"][0]
        if encoder.pooling == "eot":
            assert ids[-1] == 49_407 and ids.count(49_407) == 1
            expected = features.tokens[0, len(ids) - 1]
        else:
            expected = sum(features.tokens[0, i] for i in range(len(ids))) / len(ids)
        torch.testing.assert_close(features.pooled[0], expected, rtol=1e-5, atol=1e-6)
    kinds = {"CLIPTextModel": "eot", "BertModel": "mean"}
    assert encoder.pooling == kinds[type(encoder.body).__name__]


def test_tokens_are_the_last_hidden_state_projected(encoder):
    ids = torch.tensor(encoder.tokenize(TEXTS[:1])["input_ids"])
    weight = encoder.projection.weight.double()
    assert weight.shape == (64, 32) and encoder.projection.bias is None
    with torch.no_grad():
        hidden = encoder.body(input_ids=ids).last_hidden_state[0].double()
        found = encoder(ids, torch.ones_like(ids)).tokens[0].double()
    torch.testing.assert_close(found, torch.stack([weight @ row for row in hidden]), rtol=1e-5, atol=1e-6)


def test_truncation_keeps_the_ends(encoder):
    rows = encoder.tokenize(["dog " * 100, "a dog"])
    limit = encoder.context_length
    start, end = (
        (49_406, 49_407) if encoder.pooling == "eot" else (BERT_WORDS.index("[CLS]"), BERT_WORDS.index("[SEP]"))
    )
    for ids, offsets, length in zip(rows["input_ids"], rows["offset_mapping"], (limit, 4), strict=True):
        assert len(ids) == len(offsets) == length
        assert (ids[0], ids[-1]) == (start, end)


def test_rebuilt_encoder_has_the_same_parts(encoder, bert_folder):
    stored = json.loads(json.dumps(encoder.architecture))
    folder = None if encoder.pooling == "eot" else bert_folder
    rebuilt = rebuild_text_encoder(stored, 64, folder).eval()
    assert {name: value.shape for name, value in rebuilt.state_dict().items()} == {
        name: value.shape for name, value in encoder.state_dict().items()
    }
    rebuilt.load_state_dict(encoder.state_dict())
    for text in TEXTS:
        first, second = encode_alone(encoder, text), encode_alone(rebuilt, text)
        assert first[0]["input_ids"] == second[0]["input_ids"]
        assert torch.equal(first[1].pooled, second[1].pooled) and torch.equal(first[1].tokens, second[1].tokens)
    assert (rebuilt.pooling, rebuilt.context_length) == (encoder.pooling, encoder.context_length)


# CLIP's tokenizer -------------------------------------------------------------------------------------------------

STRINGS = [
    "a photo of a cat.",
    "A PHOTO OF A CAT",
    "Café au lait, crème brûlée",
    "ÉCOLE NATIONALE",
    "naïve façade",
    "Ünïcödé",
    "🐶 and 🐱",
    "👩‍👩‍👧 family 🇫🇷 flag",
    "DON'T stop; they're here, I'll wait",
    "100% sure, 3,5 kg!",
    "  many   spaces\t\nand lines ",
    "hello...world",
    "日本語の文字 and 中文abc",
    "½ cup of x²",
    "a_b-c/d (e) [f] {g}",
    "$5.99 (USD) #1 @home",
    "Straße",
    "İstanbul",
    "wait—what–now…",
    "",
    "?!",
    "antidisestablishmentarianism",
]


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

PARTS = [
    *(f"attention.self.{part}" for part in ("query", "key", "value")),
    *("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
]
EMBEDDINGS = [
    *(f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")),
    *("embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"),
]


def layers(*numbers: int) -> set[str]:
    kinds = ("weight", "bias")
    return {f"body.encoder.layer.{number}.{part}.{kind}" for number in numbers for part in PARTS for kind in kinds}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        (0, set()),
        (1, layers(2)),
        (2, layers(1, 2)),
        (3, layers(0, 1, 2)),
        ("all", layers(0, 1, 2) | {f"body.{name}" for name in EMBEDDINGS}),
    ],
)
def test_which_parameters_learn(trainable, expected, bert_folder):
    encoder = make_bert(bert_folder, trainable_layers=trainable).train()
    learning = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert learning == expected | {"projection.weight"}
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


@pytest.mark.parametrize("count", [4, -1, "some"])
def test_layers_that_are_not_there(count, bert_folder):
    refused(lambda: make_bert(bert_folder, trainable_layers=count), f"text.trainable_layers={count}", "0 to 3", "all")


def test_context_longer_than_the_positions(bert_folder):
    assert make_bert(bert_folder, context_length=24).context_length == 24
    refused(lambda: make_bert(bert_folder, context_length=25), "text.context_length=25", "24", str(bert_folder))


TOKENIZERS = {"broken tokenizer": "{", "empty tokenizer": "{}", "tokenizer of no kind": '{"model": {"type": "None"}}'}


@pytest.mark.parametrize("kind", ["missing", "empty", "broken config", "pickle only", *TOKENIZERS])
def test_directories_that_are_no_model(kind, tmp_path):
    folder = tmp_path / "text"
    if kind == "empty":
        folder.mkdir()
    elif kind != "missing":
        save_bert(folder)
    if kind == "broken config":
        (folder / "config.json").write_text("{")
    elif kind == "pickle only":  # never read, even though it is there
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    elif kind in TOKENIZERS:
        (folder / "tokenizer.json").write_text(TOKENIZERS[kind])
    refused(lambda: make_bert(folder), str(folder))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_that_a_config_names_is_not_fetched(key, tmp_path):
    """`owner/name` there is a kernel on the hub: code."""
    folder = save_bert(tmp_path / "text")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {key: "someone/kernel"}), encoding="utf-8")
    encoder = make_bert(folder)
    stored = encoder.architecture
    stored["body"] |= {key: "someone/kernel"}
    rebuilt = rebuild_text_encoder(stored, 64, folder)
    for made in (encoder, rebuilt):
        assert made.body.config._attn_implementation in ("sdpa", "eager")


def test_directory_without_a_tokenizer(tmp_path):
    BertModel(BertConfig(vocab_size=len(BERT_WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=32)).save_pretrained(tmp_path / "text")  # fmt: skip
    refused(lambda: make_bert(tmp_path / "text"), "tokenizer")


@pytest.mark.parametrize("kind", ["a layer is missing", "no name fits"])
def test_text_weights_that_do_not_cover_the_model(kind, tmp_path):
    folder = save_bert(tmp_path / "text")
    state = load_file(folder / "model.safetensors")
    if kind == "a layer is missing":
        state = {name: value for name, value in state.items() if "layer.2." not in name}
    else:
        state = {f"other.{name}": value for name, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: make_bert(folder), str(folder))


@pytest.mark.parametrize("kind", ["broken", "other shapes"])
def test_broken_text_weights(kind, tmp_path):
    folder = save_bert(tmp_path / "text")
    if kind == "broken":
        (folder / "model.safetensors").write_bytes(b"x" * 100)
    else:
        state = load_file(folder / "model.safetensors")
        state["embeddings.word_embeddings.weight"] = torch.zeros(7, 32)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    refused(lambda: make_bert(folder), str(folder))


def test_model_of_text_and_images(tmp_path):
    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(text_config=part | {"vocab_size": 20}, vision_config=part | {"image_size": 16, "patch_size": 8})
    folder = save_bert(tmp_path / "text")
    CLIPModel(config).save_pretrained(folder)
    refused(lambda: make_bert(folder), str(folder))


def test_positions_that_tokens_cannot_use(tmp_path):
    folder = save_bert(tmp_path / "text")
    config = RobertaConfig(vocab_size=len(BERT_WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=32, max_position_embeddings=24)  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    fitting = make_bert(folder, context_length=22).eval()
    assert encode_alone(fitting, "dog " * 30)[1].tokens.shape == (1, 22, 64)
    refused(lambda: make_bert(folder, context_length=24), "text.context_length=24", "22")


# Compilation ------------------------------------------------------------------------------------------------------


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
