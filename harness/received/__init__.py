"""What somebody else made and we open: names, files, JSON and text, each through one door."""
