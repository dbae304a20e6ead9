"""One module per format of data files: how its rows are recognised, and what is kept of them."""
