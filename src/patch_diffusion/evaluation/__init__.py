"""Is a model good, and which of several is better: numbers with their intervals and the settings that made them."""
