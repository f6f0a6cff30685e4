"""A stranger's package: a method, a space and a runtime that mobilenas finds by their entry points."""
