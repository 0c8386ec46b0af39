"""A head of masks on the frozen backbone: several resolutions, object queries, classes by words (MROVSeg)."""
