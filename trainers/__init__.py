"""The methods, and what they need: can be read and tested with tensors alone."""
