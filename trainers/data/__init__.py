"""Records, images, data files and processing; imports nothing else of ours."""
