"""Runs as plain directories."""
