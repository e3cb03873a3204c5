"""The configuration files a person writes (`.dstack.yml`), one module a type."""
