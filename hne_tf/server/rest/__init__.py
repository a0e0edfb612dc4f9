"""TF Serving's RESTful API: JSON over HTTP, answered by the same predictions as gRPC."""
