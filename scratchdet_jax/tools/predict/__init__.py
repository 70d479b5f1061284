"""Detects objects in photos, folders and videos; see __main__."""
