"""One run's directory: its files, its lock, its steps, how it stands."""
