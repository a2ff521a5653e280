"""The method: where a patch lies, how it is cut, and which sizes a step takes."""
