"""Scores, and the naive baselines they are held against."""
