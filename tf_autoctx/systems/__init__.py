"""A wing per published system, the only rooms that know a paper, and what they all go through."""
