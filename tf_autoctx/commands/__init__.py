"""What a user types: flags made from configuration fields, and mains like a method section."""
