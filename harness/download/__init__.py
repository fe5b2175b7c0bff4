"""Bytes from elsewhere: files and directories over gs:// and https://, kept in the cache."""
