"""The loop closed: episodes from the simulator, a small model trained on them, and its success in it."""
