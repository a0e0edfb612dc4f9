"""Runs that begin with a model that is there already, and what they leave as it is."""
