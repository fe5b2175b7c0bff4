"""A checkpoint on a frame of a dataset."""
