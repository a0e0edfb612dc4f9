"""Command-line binaries: flags, one frozen config, one library call."""
