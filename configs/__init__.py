"""The shipped experiments, one file each: `get_config(preset)` returns its config."""
