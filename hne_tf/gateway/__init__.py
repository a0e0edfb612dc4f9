"""A gateway in front of TF Serving or the embedded server: `anytime` for any client."""
