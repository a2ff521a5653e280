"""Images from wherever they are, in an order that can be computed."""
