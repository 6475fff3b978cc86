"""Reading the weights of third-party SAEs, a module per format."""
