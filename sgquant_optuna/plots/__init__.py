"""Plots of a study: numbers without a plotting library, then figures."""
