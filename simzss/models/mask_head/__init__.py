"""A mask head on the frozen backbone: two resolutions, object queries, classes given by text (MROVSeg)."""
