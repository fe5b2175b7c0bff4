"""Opens what other people made: names, files, JSON and text."""
