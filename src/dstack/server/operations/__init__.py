"""What a user can ask for: one function per REST operation. No HTTP, no SDK."""
