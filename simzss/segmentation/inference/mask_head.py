"""Class scores by a mask head, which cuts windows of its own."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from simzss.models.mask_head.head import MaskHead
from simzss.models.mask_head.views import views_per_image
from simzss.models.simzss import SimZSS
from simzss.segmentation.classifier import Classifier
from simzss.segmentation.inference.windows import shape_of


def mask_head_scores(
    model: SimZSS, head: MaskHead, images: Sequence[Tensor], classifiers: Sequence[Classifier], batch_size: int
) -> Iterator[list[Tensor]]:
    """Yield for each image the scores (1, S, h, w) of each classifier.

    Scores are logarithms of probabilities times the temperature, so that the classifier's softmax gives those back.

    Args:
        model: with the backbone.
        head: of the model.
        images: (3, H, W) uint8 of whole windows.
        classifiers: of class names.
        batch_size: windows at a time, at least those of one image.
    """
    device = model.backbone.mean.device
    exponents = [head.ensemble_exponents(classifier.rows).to(device) for classifier in classifiers]
    found: dict[int, list[Tensor]] = {}
    by_shape: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_shape[shape_of(image)].append(index)
    for shape, indices in by_shape.items():
        step = max(1, batch_size // views_per_image(*shape, head.settings.window, head.settings.views))
        for members in (indices[start : start + step] for start in range(0, len(indices), step)):
            batch = torch.stack([images[index] for index in members]).to(device)
            levels = head.encode(model.backbone, model.feature_norm.patches, batch)
            output = head(levels)[-1]
            for classifier, exponent in zip(classifiers, exponents, strict=True):
                maps = head.class_maps(output, levels, classifier.similarity, exponent)
                scores = maps.clamp(min=torch.finfo(maps.dtype).tiny).log() * classifier.temperature
                for index, own in zip(members, scores, strict=True):
                    found.setdefault(index, []).append(own[None])
    yield from (found[index] for index in range(len(images)))
