"""What every system goes through, written against the declared `System` and `Stage`."""
