"""An app with mods and a query."""
