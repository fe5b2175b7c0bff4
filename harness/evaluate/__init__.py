"""What episodes in the simulator say: which are asked, rates with intervals, pairs, and a verdict."""
