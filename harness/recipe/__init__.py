"""The recipe (what is learned), its parameters, and the meaning of changed keys."""
