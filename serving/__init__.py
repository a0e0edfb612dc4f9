"""What runs beside TF Serving: a local stand-in, a client and budget policy."""
