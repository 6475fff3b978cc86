"""Text made on the spot: English, little stories and Lua programs."""
