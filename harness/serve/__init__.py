"""A checkpoint as a policy on the wire, as openpi's clients ask for it."""
