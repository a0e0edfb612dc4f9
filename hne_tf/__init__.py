"""Hierarchical neural ensembles: one tree of networks, an answer for every budget."""
