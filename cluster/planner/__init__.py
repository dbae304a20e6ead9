"""Memory of a run before it starts: architectures on the meta device, and the GPUs to fit."""
