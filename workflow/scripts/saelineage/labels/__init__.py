"""Labels of features in words."""
