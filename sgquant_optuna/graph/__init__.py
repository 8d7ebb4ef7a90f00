"""Graphs, models and their full-precision training: PyTorch Geometric alone, no quantizer."""
