"""What a user types: flags made from configuration fields, and mains that read like a method section."""
