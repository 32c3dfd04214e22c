"""A complete experiment in one TOML file: checked, priced, and run stage by stage."""
