"""Settings for the tests with the real simulator."""

# Two hours on two idle cores; they run when they are named: ci/local test tests/simulator/by_hand.
collect_ignore = ["by_hand"]
