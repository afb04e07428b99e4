"""Evaluation: a program run on rows, and scored by the metric."""
