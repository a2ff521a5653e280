"""How the weights move, and their averages."""
