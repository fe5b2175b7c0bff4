"""A run checked on the host, inside of the image that its manifest names."""
