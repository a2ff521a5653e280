"""Numbers that tell how good samples are, with their intervals and the settings that made them."""
