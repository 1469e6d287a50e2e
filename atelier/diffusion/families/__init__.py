"""The model families, a module each: what `base.Base` asks for. Importing the package itself imports nothing."""
