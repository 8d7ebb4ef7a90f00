"""A search from its objective to the exported trial: what drives all other rooms."""
