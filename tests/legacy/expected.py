"""What the old code gives for these fixtures, to expected.npz and expected.json; run by make.sh."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from simzss.cache.store import FeatureStore
from simzss.segmentation.prompts import READOUTS, embed_names, templates
from simzss.segmentation.segmenter import Segmenter

PHOTO = "scenes/images/val/meadow.jpg"
CLASSES = [["sky"], ["green grass", "lawn"], ["ball"]]
STEP = 4  # every fourth row and column of the logits is kept
MARGIN = 1e-3  # between the two best logits; nearer, rounding could decide


def segmented(kind: str, arrays: dict[str, Any], facts: dict[str, Any]) -> Segmenter:
    """Logits, vectors and settings of one model on one photo."""
    segmenter = Segmenter.from_pretrained(f"{kind}/model", precision="32-true", device=torch.device("cpu"))
    segmenter.set_classes(CLASSES)
    prediction = segmenter.predict(Image.open(PHOTO))
    logits = prediction.logits
    best, second = logits.topk(2, dim=0).values
    written = np.asarray(Image.open(f"segment/{kind}/meadow_mask.png"))
    assert (prediction.mask.numpy() == written).all()
    arrays[f"{kind}/logits"] = logits[:, ::STEP, ::STEP].numpy()
    arrays[f"{kind}/certain"] = (best - second >= MARGIN).numpy()
    facts[kind] = {
        "readout": segmenter.readout,
        "class_names": list(prediction.class_names),
        "pixels": prediction.mask.flatten().bincount(minlength=len(CLASSES)).tolist(),
        "least_margin": (best - second).min().item(),
        "uncertain_pixels": int((best - second < MARGIN).sum()),
        "logits_shape": list(logits.shape),
    }
    return segmenter


def main() -> None:
    """Write both files."""
    arrays: dict[str, Any] = {}
    facts: dict[str, Any] = {"photo": PHOTO, "classes": CLASSES, "step": STEP, "margin": MARGIN}
    segmenter = segmented("run", arrays, facts)
    segmented("masks_run", arrays, facts)
    assert segmenter.classifier is not None
    arrays["run/classifier"] = segmenter.classifier.weights.numpy()
    names = [name for group in CLASSES for name in group]
    for readout in READOUTS:
        found = embed_names(segmenter.model, names, templates("imagenet80"), readout)
        arrays[f"run/names/{readout}"] = found.numpy()
    store = FeatureStore.open("cache")
    first = torch.tensor([0])
    features = store.rows(first, first).features(torch.float32)
    arrays["cache/cls"], arrays["cache/patches"] = features.cls.numpy(), features.patches.numpy()
    facts["cache"] = {
        "images": len(store), "views": store.views, "grid": list(store.grid), "width": store.width,
        "captions": [[caption.to_json() for caption in captions] for captions in store.captions],
    }  # fmt: skip
    with Path("resumed/metrics.csv").open(newline="") as file:
        facts["resumed"] = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    np.savez_compressed("expected.npz", **arrays)
    Path("expected.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
