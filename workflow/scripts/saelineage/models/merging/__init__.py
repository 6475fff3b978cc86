"""Merging models tensor by tensor: one function a method, any number of parents, one block of rows in memory."""
