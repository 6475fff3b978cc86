"""Generated text: English, short stories and Lua programs."""
