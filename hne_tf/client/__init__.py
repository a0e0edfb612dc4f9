"""Clients of TF Serving's gRPC API that keep a time budget."""
