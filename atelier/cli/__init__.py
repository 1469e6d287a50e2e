"""The `atelier` command: a client of the three services. Needs none of the services' own dependencies."""
