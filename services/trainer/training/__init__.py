"""What every training method is made of. Importing the package itself imports nothing."""
