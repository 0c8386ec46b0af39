"""The training step of the original release, reimplemented: the baseline of `cached` and `uncached`.

For each caption its image is decoded whole and cropped; the frozen backbone sees the whole batch at once; every caption
is padded to the context length; concepts travel in a padded table with a fixed number of slots for each caption, whose
empty slots have a value of their own; AdamW is the plain one. Architecture, weights, tokenizer, bank and precision are
ours, so that only the implementation differs. One process, as the release's formulas hold there.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from simzss.losses.settings import LossSettings
from simzss.models.simzss import SimZSS
from simzss.training.data.encoding import EncodedCaption
from simzss.training.settings import OptimSettings

EMPTY = -1
"""Fills slots without a concept and entries without a token."""


@dataclass
class PaddedBatch:
    """B captions: `pixels` (B, 3, H, W) normalised, `input_ids` and `attention_mask` (B, L), `concept` (B, C) ids and
    `token_index` (B, C, T) of their tokens, both filled up with -1."""  # fmt: skip

    pixels: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    concept: Tensor
    token_index: Tensor

    def to(self, device: torch.device) -> "PaddedBatch":
        """Return a copy on another device."""
        parts = (self.pixels, self.input_ids, self.attention_mask, self.concept, self.token_index)
        return PaddedBatch(*(part.to(device, non_blocking=device.type != "cpu") for part in parts))


@dataclass
class OriginalLosses:
    """Results of one step: losses, prototypes (K, D), which of them are `present` (K,), pooled patches (B, C, D)."""

    total: Tensor
    contrastive: Tensor
    concept: Tensor
    prototypes: Tensor
    present: Tensor
    pooled: Tensor


class CaptionImages(Dataset[tuple[Tensor, int]]):
    """The picture of caption i, decoded for this caption alone; `caption` numbers the captions.

    Args:
        files: JPEG bytes of the image of each caption.
        size: side of the pictures.
        mean: of the normalisation, three channels.
        std: of the normalisation.
    """

    def __init__(self, files: Sequence[bytes], size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.files = files
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, (0.9, 1.0), interpolation=InterpolationMode.BICUBIC),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(mean), list(std)),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(io.BytesIO(self.files[index])).convert("RGB")), index


def padded_table(captions: Sequence[EncodedCaption], slots: int, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Return concept ids (B, slots) and token indices (B, slots, tokens) of captions, filled up with -1.

    Raises:
        ValueError: a caption has more concepts, or a concept more tokens, than the table holds.
    """
    concept = torch.full((len(captions), slots), EMPTY)
    token_index = torch.full((len(captions), slots, max_tokens), EMPTY)
    for row, caption in enumerate(captions):
        if len(caption.concepts) > slots:
            raise ValueError(f"caption {row} has {len(caption.concepts)} concepts, the table {slots} slots")
        for slot, (concept_id, start, end) in enumerate(caption.concepts):
            if end - start > max_tokens:
                raise ValueError(f"a concept of caption {row} has {end - start} tokens, the table {max_tokens}")
            concept[row, slot] = concept_id
            token_index[row, slot, : end - start] = torch.arange(start, end)
    return concept, token_index


def padded_text(captions: Sequence[EncodedCaption], length: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Return token ids and mask (B, length) of captions."""
    ids = torch.full((len(captions), length), pad_id)
    mask = torch.zeros(len(captions), length, dtype=torch.long)
    for row, caption in enumerate(captions):
        ids[row, : len(caption.input_ids)] = torch.tensor(caption.input_ids)
        mask[row, : len(caption.input_ids)] = 1
    return ids, mask


def original_losses(
    cls: Tensor,
    patches: Tensor,
    pooled: Tensor,
    tokens: Tensor,
    concept: Tensor,
    token_index: Tensor,
    *,
    num_concepts: int,
    logit_scale: Tensor,
    concept_scale: float,
    pool_temperature: float,
    weight: float,
) -> OriginalLosses:
    """Compute both losses of a batch, the concept's target being the likeliest one.

    Args:
        cls: (B, D) unit vectors, as `pooled` (B, D) and `patches` (B, N, D).
        patches: of the images.
        pooled: of the captions.
        tokens: (B, L, D) before normalisation.
        concept: (B, C) ids, -1 in empty slots.
        token_index: (B, C, T) indices of their tokens, -1 where there is none.
        num_concepts: K.
        logit_scale: factor on the cosines of images and captions.
        concept_scale: factor on the cosines of pooled patches and prototypes.
        pool_temperature: of the softmax over patches.
        weight: of the concept loss.
    """
    # Image against caption.
    similarity = logit_scale * pooled @ cls.T
    own = torch.arange(len(cls), device=cls.device)
    contrastive = (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2

    # A phrase is the sum of its unit token vectors, a prototype that of all phrases of its concept.
    unit = F.normalize(tokens, dim=-1)
    rows = own[:, None, None].expand_as(token_index)
    phrase = (unit[rows, token_index.clamp(min=0)] * (token_index != EMPTY)[..., None]).sum(dim=2)  # (B, C, D)
    member = F.one_hot(concept.clamp(min=0), num_concepts) * (concept != EMPTY)[..., None]  # (B, C, K)
    prototypes = F.normalize(torch.einsum("bck,bcd->kd", member.to(phrase.dtype), phrase), dim=-1)
    present = member.sum(dim=(0, 1)) > 0

    # Every slot, empty or not, pools the patches of its image.
    query = prototypes[concept.clamp(min=0)]
    attention = torch.softmax(torch.einsum("bcd,bnd->bcn", query, patches) / pool_temperature, dim=-1)
    pooled_patches = F.normalize(torch.einsum("bcn,bnd->bcd", attention, patches), dim=-1)
    logits = concept_scale * pooled_patches @ prototypes.T
    logits = logits.masked_fill(~present, torch.finfo(logits.dtype).min)
    label = logits.argmax(dim=-1).masked_fill(concept == EMPTY, EMPTY)
    classified = F.cross_entropy(logits.flatten(0, 1), label.flatten(), ignore_index=EMPTY)
    return OriginalLosses(
        contrastive + weight * classified, contrastive, classified, prototypes, present, pooled_patches
    )


class OriginalStep:
    """Whole steps of the original release on a model of ours.

    Args:
        model: its backbone keeps float32 weights, which autocast converts.
        num_concepts: K.
        optim: of AdamW; without its schedule.
        loss: weight and temperatures.
        precision: `bf16-mixed` or `32-true`.
        device: where.
    """

    def __init__(
        self,
        model: SimZSS,
        num_concepts: int,
        optim: OptimSettings,
        loss: LossSettings,
        precision: str,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).train()
        self.num_concepts = num_concepts
        self.loss = loss
        self.precision = precision
        self.device = device
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in learning if p.ndim > 1], "weight_decay": optim.weight_decay},
            {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)

    def losses(self, batch: PaddedBatch) -> OriginalLosses:
        """Compute the losses of a batch on the device."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            with torch.no_grad():
                cls, patches = _vision(self.model.backbone.model, batch.pixels)
            text = self.model.text_encoder(batch.input_ids, batch.attention_mask)
        return original_losses(
            F.normalize(cls.float(), dim=-1),
            F.normalize(patches.float(), dim=-1),
            F.normalize(text.pooled.float(), dim=-1),
            text.tokens.float(),
            batch.concept,
            batch.token_index,
            num_concepts=self.num_concepts,
            logit_scale=self.model.logit_scale.exp().clamp(max=100.0),
            concept_scale=1 / self.loss.concept_temperature,
            pool_temperature=self.loss.pool_temperature,
            weight=self.loss.concept_weight,
        )

    def step(self, batch: PaddedBatch) -> Tensor:
        """Update the parameters; return the loss, detached."""
        total = self.losses(batch.to(self.device)).total
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total.detach()


def padded_batches(
    images: CaptionImages, captions: Sequence[EncodedCaption], batch_size: int, length: int, pad_id: int, workers: int
) -> Iterator[PaddedBatch]:
    """Yield whole batches of captions in order, images decoded by so many processes.

    Args:
        images: of the captions.
        captions: caption i belongs to image i.
        batch_size: B.
        length: L that all are padded to.
        pad_id: token that fills up.
        workers: decoding processes.
    """
    slots = max(1, max(len(caption.concepts) for caption in captions))
    max_tokens = max((end - start for caption in captions for _, start, end in caption.concepts), default=1)
    loader = DataLoader(
        images,
        batch_size,
        drop_last=True,
        num_workers=workers,
        pin_memory=torch.accelerator.is_available(),
        multiprocessing_context="fork" if workers else None,
    )
    for pixels, index in loader:
        chosen = [captions[i] for i in index.tolist()]
        yield PaddedBatch(pixels, *padded_text(chosen, length, pad_id), *padded_table(chosen, slots, max_tokens))


def _vision(model: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return class token (B, D) and patches (B, N, D) of timm's ViT after its final norm."""
    tokens = model.forward_features(pixels)  # type: ignore[operator]
    return tokens[:, 0], tokens[:, model.num_prefix_tokens :]
