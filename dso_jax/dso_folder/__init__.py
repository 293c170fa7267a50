"""DSO's own data folders, read and written."""
