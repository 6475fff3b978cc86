"""Documents from four sources, dealt to three splits."""
