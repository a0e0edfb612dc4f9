"""Training runs: settings, workdir, the distributed and resumable loop."""
