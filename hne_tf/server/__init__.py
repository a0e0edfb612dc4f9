"""A server of TF Serving's gRPC API for machines without TF Serving."""
