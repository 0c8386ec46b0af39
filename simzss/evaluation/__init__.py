"""Measuring: confusion matrix, benchmarks, reports."""
