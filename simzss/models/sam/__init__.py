"""Segment Anything models: one frozen interface for SAM, SAM 2 and MobileSAM."""
