"""Images and captions in, batches out; shards, cached features, segmentation folders."""
