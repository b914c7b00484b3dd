"""A model in, scores out: sliding windows, and one file for each metric."""
