"""What a response did, and which classes of responses are compared."""
