"""The order of the parts: from probe to report."""
