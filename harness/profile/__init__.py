"""Where the time of a training step went: a trace of the device, joined with the program that it ran."""
