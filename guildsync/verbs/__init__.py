"""What a person asks for, in which order."""
