"""Where and when things run: Ray, the loop, the command line."""
