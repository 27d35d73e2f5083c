"""Files become layers, and layers become files again."""
