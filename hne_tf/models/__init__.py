"""Architectures, written once, and the layer factories that build them."""
