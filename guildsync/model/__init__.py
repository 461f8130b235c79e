"""What things are and what should happen: values and decisions, no input or output."""
