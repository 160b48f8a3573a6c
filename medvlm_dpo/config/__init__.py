"""Configuration: the root schema, the check of names and types, building objects from plain nodes, identities."""
