//! Recipes: everything a run needs as TOML, with overrides, refusals of unknown keys, and `auto` values to resolve.
