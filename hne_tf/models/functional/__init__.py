"""Functional Keras models of the user's own: their graph, its cost, and where it can be cut."""
