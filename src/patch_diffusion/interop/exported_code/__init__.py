"""What an exported folder carries to be opened by diffusers alone; `bundle` makes each of these one file of its own."""
