"""What paths in a bucket need; the core imports it by name, and only for them (paths.py)."""
