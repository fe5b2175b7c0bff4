"""Downloads of files and directories over gs:// and https://, kept in the cache."""
