"""Which checkpoint, by what its parameters do on episodes not trained on."""
