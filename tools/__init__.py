"""Scripts for those who work on Atelier."""
