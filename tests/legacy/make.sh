#!/usr/bin/env bash
# How these fixtures were made, for the record: by commit 19d750b, the last one before the refactoring.
# To make them again: a checkout of that commit first on PYTHONPATH, its environment active, and an empty folder that
# holds this file, inputs.py and expected.py as the working directory.
set -euo pipefail
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=

python inputs.py
touch -d 2020-01-01T00:00:00Z source/photos/*   # what is finished in shards/ is told by size and time of the photos

python -m data_prep.captions images=source/photos captions=source/captions.json output=shards samples_per_shard=2 executor=serial

vit="backbone=dino_vits16 backbone.name=tiny_vit backbone.timm_name=test_vit.r160_in1k backbone.image_size=64"
python -m simzss cache $vit backbone.weights=backbone data.shards='shards/*.tar' data.num_workers=0 output=cache accelerator=cpu precision=32-true

trainer="trainer.accelerator=cpu trainer.devices=1 trainer.precision=32-true trainer.progress_bar=false"
caption_run() {
  python -m simzss train $vit backbone.weights=backbone text=pretrained text.weights=text text.trainable_layers=1 \
    text.context_length=32 data=cached data.features=cache data.batch_size=4 data.num_workers=0 optim.lr=3e-2 \
    $trainer "$@"
}
caption_run trainer.epochs=2 output_dir=run
cp -r run resumed
caption_run trainer.epochs=5 output_dir=resumed resume=last   # expected.py takes its metrics.csv

python -m simzss train experiment=mrovseg_cpu model=run/model masks.benchmark=scenes masks.root=scenes masks.held_out=0.0 \
  masks.batch_size=2 masks.num_workers=0 multires.window=64 multires.depths=[0,3] multires.width=8 multires.heads=1 \
  multires.queries=4 multires.layers=1 mask_loss.points=256 $trainer trainer.epochs=1 trainer.max_steps=1 output_dir=masks_run

python -m simzss eval model=run/model benchmark=scenes benchmark.root=scenes precision=32-true overlays=0 num_workers=0 compare_untrained=true output_dir=eval
for kind in run masks_run; do
  python -m simzss segment scenes/images/val/meadow.jpg model=$kind/model classes="sky,green grass/lawn,ball" \
    precision=32-true output_dir=segment/$kind
done

python expected.py

# What no test reads.
cp --remove-destination "$(readlink -f run/checkpoints/last.ckpt)" run/checkpoints/last.ckpt
rm -rf resumed __pycache__ {run,masks_run}/tensorboard masks_run/checkpoints masks_run/{metrics.csv,train.txt,held_out.txt} eval/report.html eval/results.md
rm -f run/checkpoints/epoch*.ckpt segment/*/*_overlay.png shards/.tasks/lock cache/.tasks/lock
rmdir shards/.tasks/scratch
chmod -R u=rwX,go=rX .
