"""The coordinator's operations, a module a subject. `hub_service.coordinator` puts them together."""
