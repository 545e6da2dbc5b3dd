"""A wing per published system, the only rooms that know a paper, and `shared/`, which all go through."""
