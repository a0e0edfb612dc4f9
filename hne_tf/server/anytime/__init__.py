"""Signature `anytime`: the largest ensemble that the time of a call allows."""
