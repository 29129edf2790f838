"""Plain file work: local and remote, whole or not at all, growing by records. Knows neither data
sets nor runs."""
