"""Modules that an exported folder contains, so that diffusers alone opens it; `bundle` makes each a single file."""
