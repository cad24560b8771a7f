"""The commands `sit-deploy train` and `sit-deploy quickstart`."""
