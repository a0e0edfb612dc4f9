"""Latency of published models on this machine, measured side by side."""
