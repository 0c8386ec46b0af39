"""What the fixtures start from, all of it drawn or drawn at random: photos, captions, masks, untrained weights.

source/     photos and captions.json, for data_prep.captions; not kept
scenes/     two of the photos with index masks, in the layout of conf/benchmark/scenes.yaml
backbone/   tiny_vit.safetensors: timm's test_vit without its classifier, random values in float16
text/       a transformers directory: a random BERT of two layers of 32 channels, letters and a few words as vocabulary
"""

import json
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

SIZE = (96, 72)
CAPTIONS = {
    "meadow.jpg": ["a red ball on the green grass", "The sky above a lawn."],
    "dog.jpg": ["a dog near a tree under a blue sky"],
    "night.jpg": ["an orange ball and a café table at night", "two balls"],
    "house.jpg": ["A house, a tree and a car on the road."],
}
SKY, GRASS, BALL, IGNORE = 0, 1, 2, 255
WORDS = ("a", "the", "photo", "of", "sky", "grass", "lawn", "ball", "green", "dog", "tree", "house", "in", "on")


def scene(seed: int, sky: tuple[int, int, int], ground: tuple[int, int, int]) -> tuple[Image.Image, Image.Image]:
    """Sky, ground and balls with some noise, and the mask of it, whose left column does not count."""
    rng = np.random.default_rng(seed)
    photo, mask = Image.new("RGB", SIZE, sky), Image.new("L", SIZE, SKY)
    horizon = int(rng.integers(26, 44))
    ImageDraw.Draw(photo).rectangle((0, horizon, *SIZE), ground)
    ImageDraw.Draw(mask).rectangle((0, horizon, *SIZE), GRASS)
    for _ in range(2):
        x, y, r = int(rng.integers(16, 80)), int(rng.integers(24, 60)), int(rng.integers(8, 16))
        box = (x - r, y - r, x + r, y + r)
        ImageDraw.Draw(photo).ellipse(box, tuple(int(value) for value in rng.integers(40, 255, 3)))
        ImageDraw.Draw(mask).ellipse(box, BALL)
    ImageDraw.Draw(mask).rectangle((0, 0, 0, SIZE[1]), IGNORE)
    noise = rng.normal(0, 9, (SIZE[1], SIZE[0], 1))
    return Image.fromarray((np.asarray(photo) + noise).clip(0, 255).astype(np.uint8)), mask


def write_photos() -> None:
    """`source/` and `scenes/`."""
    for folder in ("source/photos", "scenes/images/val", "scenes/annotations/val"):
        Path(folder).mkdir(parents=True)
    colours = [((120, 170, 235), (60, 150, 50)), ((90, 140, 220), (110, 160, 60)), ((20, 20, 60), (30, 50, 30)),
               ((200, 210, 220), (120, 110, 100))]  # fmt: skip
    for number, (name, pair) in enumerate(zip(CAPTIONS, colours, strict=True)):
        photo, mask = scene(number, *pair)
        photo.save(f"source/photos/{name}", quality=85)
        if number < 2:
            photo.save(f"scenes/images/val/{name}", quality=85)
            mask.save(f"scenes/annotations/val/{name.removesuffix('.jpg')}.png", optimize=True)
    Path("scenes/classes.txt").write_text("sky\ngrass, lawn\nball\n", encoding="utf-8")
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in enumerate(CAPTIONS)],
        "annotations": [
            {"image_id": number, "caption": text} for number, texts in enumerate(CAPTIONS.values()) for text in texts
        ],
    }
    Path("source/captions.json").write_text(json.dumps(coco), encoding="utf-8")


def write_backbone() -> None:
    """`backbone/`."""
    torch.manual_seed(0)
    state = timm.create_model("test_vit", pretrained=False, num_classes=0).state_dict()
    noise = torch.Generator().manual_seed(0)  # so that no bias is zero, no scale is one, and patches differ
    state = {name: (value + 0.1 * torch.randn(value.shape, generator=noise)).half() for name, value in state.items()}
    Path("backbone").mkdir()
    save_file(state, "backbone/tiny_vit.safetensors")


def write_text() -> None:
    """`text/`."""
    letters = "abcdefghijklmnopqrstuvwxyzé"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *letters, *(f"##{c}" for c in letters)]
    tokens += [word for word in WORDS if word not in tokens]
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained("text")
    tokenizer = BertTokenizerFast(vocab={token: i for i, token in enumerate(tokens)}, strip_accents=False)
    tokenizer.save_pretrained("text")


if __name__ == "__main__":
    write_photos()
    write_backbone()
    write_text()
