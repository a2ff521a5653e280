"""A checked zip of pictures from a data set."""
