"""What is learned: the recipe, its parameters, and what a changed key means."""
