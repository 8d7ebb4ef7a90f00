"""Processes that measure the trials of one study together."""
