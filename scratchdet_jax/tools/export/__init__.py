"""The command export."""
