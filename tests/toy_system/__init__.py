"""A system of another package, the example of docs/adding_a_system.md."""
