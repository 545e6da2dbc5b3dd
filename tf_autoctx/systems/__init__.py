"""One module per published system: the only room that knows a paper."""
