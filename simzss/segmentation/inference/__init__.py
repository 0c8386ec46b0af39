"""From a photo to scores of every pixel: windows, their stitching, aggregation, scores."""
